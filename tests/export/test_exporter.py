"""A torch.export program runs without detris_peft and computes the model's logits; nothing wrong is ever written."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detris_peft.export import export_model, exporter, formats
from detris_peft.export.program import Sample

REPOSITORY = str(Path(__file__).parents[2])
_RUN = """
import json, sys, torch
from safetensors.torch import load_file, save_file
extra = {"metadata.json": ""}
program = torch.export.load("model.pt2", extra_files=extra).module()
inputs = load_file("inputs.safetensors")
logits = {str(n): program(inputs["pixel_values"][:n], inputs["input_ids"][:n]).detach() for n in (1, 3)}
save_file(logits, "logits.safetensors")
loaded = [name for name in ("detris_peft", "peft", "transformers") if name in sys.modules]
print(json.dumps([loaded, json.loads(extra["metadata.json"])]))
"""


@pytest.mark.slow
def test_torch_export_runs_without_detris_peft(small, pt2_file):
    model, processor = small
    folder = pt2_file.parent
    for path in (REPOSITORY, sysconfig.get_path("purelib"), "site-packages"):
        assert path.encode() not in pt2_file.read_bytes(), "the file must not contain paths of this machine"
    inputs = {
        "pixel_values": torch.randn(3, 3, 48, 48),
        "input_ids": processor(text=["red", "a", "red square"])["input_ids"],
    }
    save_file(inputs, folder / "inputs.safetensors")
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    imported, metadata = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    logits = load_file(folder / "logits.safetensors")
    for n in (1, 3):
        with torch.no_grad():
            expected = model(inputs["pixel_values"][:n], inputs["input_ids"][:n]).logits
        torch.testing.assert_close(logits[str(n)], expected, rtol=1e-5, atol=1e-5)
    assert metadata.pop("detris_peft_version")
    assert metadata == {
        "image_size": 48,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "mask_threshold": 0.35,
        "max_text_length": 7,
        "pad_token_id": 0,
    }


@pytest.fixture
def stub(small, monkeypatch):
    """Replace tracing and writing: the file contains `program`, and running it gives the logits times `factor`."""
    model, _ = small
    pixel_values, input_ids = torch.randn(3, 3, 48, 48), torch.full((3, 7), 5)
    with torch.no_grad():
        logits = model(pixel_values, input_ids).logits
    sample = Sample(pixel_values, input_ids, logits)
    monkeypatch.setattr(exporter, "trace", lambda *_: ("program", sample))
    factor = [1.0]

    def write(program, file, metadata):
        file.write_text(program)
        if factor[0] > 2:
            formats.data_file(file).write_text("data")

    def load(file):
        assert file.is_file()
        return lambda images, ids: model(images, ids).logits.detach() * (factor[0] % 2)

    for name, function in (("write_torch_export", write), ("write_onnx", write), ("load_onnx", load)):
        monkeypatch.setattr(formats, name, function)
    monkeypatch.setattr(formats, "load_torch_export", load)
    return factor


@pytest.mark.parametrize(("format", "name"), [("torch_export", "new/model.pt2"), ("onnx", "new/model.onnx")])
def test_other_logits_are_refused(small, stub, tmp_path, format, name):
    stub[0] = 1.01
    with pytest.raises(ValueError, match=r"expected the logits of the model within .*nothing was written"):
        export_model(*small, tmp_path / name, format)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_refused_program_keeps_the_old_files(small, stub, tmp_path):
    old = {"model.onnx": "old", "model.onnx.data": "old data"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    stub[0] = 3.5  # with a data file
    with pytest.raises(ValueError, match="nothing was written"):
        export_model(*small, tmp_path / "model.onnx", "onnx", overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


def test_data_file_is_written_and_removed_with_its_model(small, stub, tmp_path):
    file = tmp_path / "model.onnx"
    stub[0] = 3.0
    result = export_model(*small, file, "onnx")
    assert result.files == (file, tmp_path / "model.onnx.data")
    assert [path.read_text() for path in result.files] == ["program", "data"]
    with pytest.raises(ValueError, match="existing one"):
        export_model(*small, file, "onnx")
    stub[0] = 1.0
    assert export_model(*small, file, "onnx", overwrite=True).files == (file,)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_torch_export_leaves_other_files(small, stub, tmp_path):
    (tmp_path / "model.pt2.data").write_text("mine")
    export_model(*small, tmp_path / "model.pt2", "torch_export")
    assert (tmp_path / "model.pt2.data").read_text() == "mine"


def test_failing_rename_leaves_nothing(small, stub, tmp_path, monkeypatch):
    stub[0] = 3.0
    real = exporter.Path.replace

    def replace(self, target):
        if target.name == "model.onnx":
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(exporter.Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        export_model(*small, tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_full_disk(stub_program, tmp_path):
    """PyTorch's own writer ends the process (std::terminate) if the disk is full."""
    program, _ = stub_program
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            formats.write_torch_export(program, tmp_path / "model.pt2", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_model_that_cannot_be_traced(small, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("data-dependent control flow\nand twenty lines of advice")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ValueError, match=r"torch.export can trace, got an error \(data-dependent control flow\); "):
        export_model(*small, tmp_path / "model.pt2", "torch_export")
    assert not list(tmp_path.iterdir())
    assert "interpolate_pos_encoding" not in vars(small[0].vision_model.get_base_model().embeddings)
