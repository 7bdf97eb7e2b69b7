"""Adapters on backbones in lower precision: bfloat16, float16 and int8."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from tests.helpers.adapter_cases import (
    AdapterCase,
    assert_differ,
    each_parallel_tuner,
    each_tuner,
    every_parallel_case_and_each_tuner,
    randomize,
)

low_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def inputs_in_dtype(case: AdapterCase, dtype: torch.dtype) -> dict[str, Any]:
    """Return the inputs of a case with float tensors cast to `dtype`."""
    return {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in case.inputs().items()
    }


@every_parallel_case_and_each_tuner
@low_precision
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False], ids=["adapter-fp32", "adapter-as-backbone"])
def test_adapter_dtype_and_outputs_on_half_precision_backbones(
    case: AdapterCase, dtype: torch.dtype, autocast_adapter_dtype: bool, tmp_path: Path
):
    """Adapters are float32 by default, as in peft. Statistics have the dtype of the weights."""
    reference = case.make_model()
    reference.save_pretrained(tmp_path)
    model = get_peft_model(
        case.make_backbone().to(dtype),
        case.make_config(),
        adapter_name="fresh",
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    model.add_adapter("added", case.make_config(), autocast_adapter_dtype=autocast_adapter_dtype)
    model.load_adapter(tmp_path, "loaded", autocast_adapter_dtype=autocast_adapter_dtype)
    expected = torch.float32 if autocast_adapter_dtype else dtype
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ours = {name: t for name, t in tensors.items() if "_branches." in name and t.is_floating_point()}
    assert {t.dtype for t in ours.values()} == {expected}
    assert {name.split("_branches.")[1].split(".")[0] for name in ours} == {"fresh", "added", "loaded"}

    model.set_adapter("loaded")
    inputs = inputs_in_dtype(case, dtype)
    with torch.no_grad():
        got = model.eval()(**inputs).last_hidden_state
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), case.run(reference), atol=0.15, rtol=0.1)
    # A half-precision image encoder also accepts float32 text.
    if "text_states" in inputs:
        with torch.no_grad():
            model(**{**inputs, "text_states": inputs["text_states"].float()})

    out = model.train()(**inputs).last_hidden_state
    out.float().square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert grads
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())


@each_tuner
def test_loading_over_a_half_precision_backbone_keeps_float32_weights(case: AdapterCase, tmp_path: Path):
    source = case.make_model()
    source.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        model = PeftModel.from_pretrained(
            case.make_backbone().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
        )
        for name, value in source.state_dict().items():
            if "_branches." in name:
                assert torch.equal(model.state_dict()[name], value), name
        model.load_adapter(tmp_path, "low", low_cpu_mem_usage=low_cpu_mem_usage, autocast_adapter_dtype=False)
        low = {t.dtype for name, t in model.state_dict().items() if ".low." in name and t.is_floating_point()}
        assert low == {torch.bfloat16}


@each_tuner
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_adapter_gradients_and_statistics_stay_float32_under_autocast(case: AdapterCase, dtype: torch.dtype):
    model = get_peft_model(case.make_backbone().to(dtype), case.make_config()).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs_in_dtype(case, dtype)).last_hidden_state
    out.float().square().mean().backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.dtype == torch.float32), name
    assert all(b.dtype == torch.float32 for name, b in model.named_buffers() if "running" in name)


@each_parallel_tuner
def test_casting_the_model_casts_weights_and_statistics(case: AdapterCase):
    model = case.make_model().to(torch.bfloat16)
    assert {b.dtype for name, b in model.named_buffers() if "running" in name} == {torch.bfloat16}
    with torch.no_grad():
        assert model(**inputs_in_dtype(case, torch.bfloat16)).last_hidden_state.dtype == torch.bfloat16


def quantize(backbone: nn.Module) -> nn.Module:
    """Quantize the weights to int8, in place."""
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    quantization.quantize_(backbone, quantization.Int8WeightOnlyConfig())
    return backbone


@every_parallel_case_and_each_tuner
def test_adapters_train_save_and_load_on_an_int8_backbone(case: AdapterCase, tmp_path: Path):
    plain = case.make_backbone()
    backbone = quantize(copy.deepcopy(plain))
    assert any("torchao" in type(p).__module__ for p in backbone.parameters())
    model = get_peft_model(backbone, case.make_config())
    randomize(model)
    weights = [p for name, p in model.named_parameters() if "_branches." in name]
    assert {(p.dtype, type(p)) for p in weights} == {(torch.float32, nn.Parameter)}
    model.train()(**case.inputs()).last_hidden_state.square().mean().backward()
    assert all(p.grad is not None for p in weights)
    model.eval().save_pretrained(tmp_path)
    on_plain = PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(case.run(model), case.run(on_plain), atol=0.15, rtol=0.1)
    reloaded = PeftModel.from_pretrained(quantize(case.make_backbone()), tmp_path, low_cpu_mem_usage=True)
    torch.testing.assert_close(case.run(reloaded), case.run(model), atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert_differ(case.run(model), case.run(on_plain))
