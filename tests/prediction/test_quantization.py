"""int8 weights of the frozen encoders: which layers, how close, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detris_peft.prediction import DetrisPredictor, quantization
from detris_peft.prediction.quantization import check_quantization, quantize_model

TEXT = "the red circle"


@pytest.fixture
def plain(checkpoint):
    return DetrisPredictor.from_pretrained(checkpoint, device="cpu")


def is_int8(weight: torch.Tensor) -> bool:
    return type(weight.data) is not torch.Tensor


def test_only_the_frozen_linear_layers_of_the_encoders_are_quantized(plain, photo):
    model = plain.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    expected = plain(photo, TEXT, return_probabilities=True).probabilities
    model.requires_grad_(False)  # frozen adapters are not quantized either
    quantize_model(model)
    quantized = {name for name, weight in model.named_parameters() if is_int8(weight)}
    backbones = [name for name in before if name not in trained and name.startswith(("vision_model.", "text_model."))]
    linear = {name for name in backbones if type(model.get_submodule(name.rpartition(".")[0])) is torch.nn.Linear}
    assert quantized == {name for name in linear if name.endswith(".weight")}
    assert any(name.startswith("vision_model.") for name in quantized)
    assert any(name.startswith("text_model.") for name in quantized)
    for name, weight in model.named_parameters():
        if name not in quantized:
            assert torch.equal(weight, before[name]), name
    difference = plain(photo, TEXT, return_probabilities=True).probabilities - expected
    assert 0 < np.abs(difference).max() < 0.05


def test_a_quantized_model_takes_bfloat16(checkpoint, plain, photo):
    low = DetrisPredictor.from_pretrained(checkpoint, device="cpu", dtype="bfloat16")
    quantize_model(low.model)
    difference = low(photo, TEXT, return_probabilities=True).probabilities
    difference = difference - plain(photo, TEXT, return_probabilities=True).probabilities
    assert np.abs(difference).max() < 0.05


def test_refused_models_and_devices(plain, monkeypatch):
    with pytest.raises(ValueError, match="quantize: expected int8, got 'int4'"):
        quantize_model(plain.model, "int4")
    with pytest.raises(ValueError, match="--quantize: expected a device among cpu, cuda, got mps"):
        check_quantization(torch.device("mps"), "--quantize")
    quantize_model(plain.model)
    with pytest.raises(ValueError, match="expected encoders that are not quantized"):
        quantize_model(plain.model)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package torchao, found no such package; run: pip install .*quantize"):
        quantize_model(plain.model)


def test_trained_encoders_are_refused(checkpoint):
    from tests.helpers import toy_run

    model = toy_run.load_model(checkpoint.parent, train_backbones=True, vision_adapter=None, text_adapter=None)
    with pytest.raises(ValueError, match="they were trained"):
        quantize_model(model)
