"""`detris export`: options reach `export_model`, and the result is printed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import detris_peft.export
from detris_peft.cli import main
from detris_peft.export import ExportResult
from tests.helpers import toy_run


@pytest.fixture
def checkpoint(root, model, rows, tmp_path):
    model.save_pretrained(tmp_path / "best")
    processor = toy_run.load_processor(model.config, rows[0])
    processor.image_processor.keep_aspect_ratio = True
    processor.save_pretrained(tmp_path / "best")
    return tmp_path / "best"


def test_options_and_output(checkpoint, tmp_path, monkeypatch, capsys):
    seen = SimpleNamespace()

    def export_model(model, processor, file, format, image_size, overwrite):
        seen.__dict__.update(model=model, file=file, format=format, image_size=image_size, overwrite=overwrite)
        output.write_bytes(bytes(1_500_000))
        return ExportResult((output,), 3.2e-7, {"image_size": 112, "max_text_length": 17}, opset=18)

    output = tmp_path / "model.onnx"
    monkeypatch.setattr(detris_peft.export, "export_model", export_model)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    options = f"--format onnx --output {output} --image_size 112 --overwrite"
    main(["export", "--checkpoint", str(checkpoint), *options.split()])
    assert (seen.file, seen.format, seen.image_size, seen.overwrite) == (str(output), "onnx", 112, True)
    assert not seen.model.training
    printed = capsys.readouterr().out
    assert "takes square images" in printed
    assert f"wrote {output} (1.5 MB)" in printed
    assert "onnx, opset 18: batches of any size, images of 112x112 pixels, 17 tokens" in printed
    assert "largest difference from PyTorch: 3.2e-07" in printed


@pytest.mark.slow
def test_command(checkpoint, tmp_path, capsys):
    file = tmp_path / "model.pt2"
    main(["export", "--checkpoint", str(checkpoint), "--format", "torch_export", "--output", str(file)])
    assert "images of 48x48 pixels" in capsys.readouterr().out
    logits = torch.export.load(file).module()(torch.zeros(2, 3, 48, 48), torch.full((2, 17), 159))
    assert logits.shape[:2] == (2, 1)
