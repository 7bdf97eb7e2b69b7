"""Models, sizes and file names that cannot be exported are refused in one line, before anything is written."""

from __future__ import annotations

import sys

import pytest
import torch

from detris_peft import TextAdapterConfig
from detris_peft.export import export_model
from detris_peft.export.checks import check_model
from tests.export.conftest import make_model


@pytest.fixture
def changed():
    """A model that a test may change, and its processor."""
    return make_model()


def refused(model, processor, tmp_path, match, error=ValueError, file="model.pt2", **options):
    with pytest.raises(error, match=match) as raised:
        export_model(model, processor, tmp_path / file, **{"format": "torch_export", **options})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_two_adapters(changed, tmp_path):
    model, processor = changed
    model.text_model.add_adapter("other", TextAdapterConfig(dim=16, layers_to_transform=[0]))
    refused(
        model,
        processor,
        tmp_path,
        r"text_model: expected one adapter in an exported model, got 2 \(default, other\); keep one and delete the "
        r"others, for example model.text_model.delete_adapter\('other'\)",
    )
    model.text_model.set_adapter("other")  # the advice never deletes the adapter in use
    refused(model, processor, tmp_path, r"delete_adapter\('default'\)")
    model.text_model.delete_adapter("default")
    check_model(model, processor)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda model: model.bfloat16(), "expected float32 weights, got torch.bfloat16; call model.float"),
        (lambda model: model.to("meta"), "expected weights on the CPU, got some on meta; load the model without"),
    ],
)
def test_weights(changed, tmp_path, change, match):
    model, processor = changed
    change(model)
    refused(model, processor, tmp_path, match)


def test_quantized_weights(changed, tmp_path):
    model, processor = changed
    layer = next(m for m in model.vision_model.modules() if isinstance(m, torch.nn.Linear))
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    refused(model, processor, tmp_path, "expected float32 weights, got quantized ones")


@pytest.mark.parametrize("image_size", [0, -8, 50, 8200, 10**30, 48.0, True, "48"])
def test_image_size(small, tmp_path, image_size):
    refused(
        *small, tmp_path, "image_size: expected a multiple of the patch size, 8, up to 8192", image_size=image_size
    )


@pytest.mark.parametrize("file", ["model.onnx", "model", ".pt2"])
def test_suffix(small, tmp_path, file):
    refused(*small, tmp_path, r"expected a name that ends with \.pt2", file=file)


def test_other_arguments(small, tmp_path):
    model, processor = small
    refused(model, processor, tmp_path, "format: expected one of torch_export, onnx, got 'tflite'", format="tflite")
    refused("run/best", processor, tmp_path, "model: expected a Detris", error=TypeError)
    refused(model, processor.tokenizer, tmp_path, "processor: expected a DetrisProcessor", error=TypeError)
    with pytest.raises(TypeError, match="file: expected a path"):
        export_model(model, processor, 3)


def test_processor_of_another_model(small, tmp_path):
    model, _ = small
    _, other = make_model(max_text_length=6)
    refused(model, other, tmp_path, "processor: expected max_text_length=7")


def test_missing_package(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(
        *small,
        tmp_path,
        r"expected the package onnx, found no such package; run: pip install 'detris-peft\[export\]'",
        error=ImportError,
        file="model.onnx",
        format="onnx",
    )


def test_existing_file(small, tmp_path):
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(ValueError, match="expected a new file, got an existing one"):
        export_model(*small, tmp_path / "model.pt2", "torch_export")
    assert (tmp_path / "model.pt2").read_text() == "mine"
