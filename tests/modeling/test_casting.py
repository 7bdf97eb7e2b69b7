"""Models in a lower precision: which weights are cast, and that the outputs agree with those of float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from detris_peft.modeling.casting import cast_model
from tests.helpers.tiny_models import inputs, perturb
from tests.modeling.test_modeling_detris import make


@pytest.fixture
def model():
    model = make()
    perturb(model)
    return model.eval()


def tensors(model, batch_norm):
    """Return the floating-point weights and buffers of the BatchNorms of a model, or of all other modules."""
    return [
        tensor
        for module in model.modules()
        if isinstance(module, _BatchNorm) is batch_norm
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.is_floating_point()
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_but_batch_norm_is_cast_and_the_outputs_agree(model, dtype):
    batch = inputs()
    with torch.no_grad():
        expected = model(**batch).logits
        cast_model(model, dtype)
        logits = model(**batch).logits
    assert {tensor.dtype for tensor in tensors(model, batch_norm=False)} == {dtype} == {model.dtype}
    assert {tensor.dtype for tensor in tensors(model, batch_norm=True)} == {torch.float32}
    assert logits.dtype == dtype
    difference = (logits.float() - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.05


def test_trained_weights_may_have_another_dtype(model):
    cast_model(model, torch.bfloat16)
    cast_model(model, None, trained_dtype=torch.float32)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(**inputs()).loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_weights_in_float64_are_trained_in_float64():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
    cast_model(module, None, trained_dtype=torch.float32)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float64, torch.int64}


def test_buffers_that_are_not_saved_and_integers_keep_their_dtype():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("frequencies", torch.ones(2), persistent=False)
    module.register_buffer("table", torch.ones(2))
    module.register_buffer("count", torch.ones(2, dtype=torch.int64))
    cast_model(module, torch.float16)
    dtypes = {name: tensor.dtype for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    half, full = torch.float16, torch.float32
    assert dtypes == {"weight": half, "bias": half, "frequencies": full, "table": half, "count": torch.int64}
