"""`learn_scale`: one trained parameter per adapter, kept in (0, 1)."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from detris_peft import BottleneckAdapterConfig, DenseAlignerConfig, TextAdapterConfig
from tests.helpers.adapter_cases import each_parallel_tuner


def logits(model):
    return {name: p for name, p in model.named_parameters() if "scale_logit" in name}


def copy_weights(source, target):
    target.load_state_dict(source.state_dict(), strict=False)


@each_parallel_tuner
def test_each_adapter_has_one_parameter_more_and_starts_like_the_fixed_scale(case):
    fixed, learned = case.make_model(), case.make_model(learn_scale=True)
    copy_weights(fixed, learned)
    scales = logits(learned)
    assert len(scales) == 2  # adapters in two blocks
    numbers = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (fixed, learned)]
    assert numbers[1] - numbers[0] == 2
    assert "scale={'default': 'learned, initially 0.2'}" in repr(learned)
    for logit in scales.values():
        torch.testing.assert_close(logit.sigmoid(), torch.tensor([0.2]))
    torch.testing.assert_close(case.run(learned), case.run(fixed))
    with torch.no_grad():
        for logit in scales.values():
            logit.fill_(100.0)  # a scale of 1
    one = case.make_model(scale=1.0)
    copy_weights(fixed, one)
    torch.testing.assert_close(case.run(learned), case.run(one))


@each_parallel_tuner
def test_the_scale_gets_a_gradient(case):
    model = case.make_model(learn_scale=True).train()
    model(**case.inputs()).last_hidden_state.square().mean().backward()
    for logit in logits(model).values():
        assert logit.requires_grad
        assert logit.grad.abs() > 0


@each_parallel_tuner
def test_a_mixed_batch_uses_the_learned_scales(case):
    model = case.make_model(learn_scale=True)
    with torch.no_grad():
        for logit in logits(model).values():
            logit.fill_(0.7)
    expected = case.run(model)
    names = ["default", "__base__", "default"]
    mixed = case.run(model, adapter_names=names)
    with model.disable_adapter():
        base = case.run(model)
    torch.testing.assert_close(mixed, torch.stack([expected[0], base[1], expected[2]]))


@each_parallel_tuner
def test_the_scale_is_saved_and_loaded(case, tmp_path):
    model = case.make_model(learn_scale=True)
    with torch.no_grad():
        for logit in logits(model).values():
            logit.fill_(0.7)
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(key.endswith(".scale_logit") for key in keys) == 2
    loaded = PeftModel.from_pretrained(case.make_backbone(), tmp_path)
    torch.testing.assert_close(case.run(loaded.eval()), case.run(model))


@each_parallel_tuner
def test_weights_without_a_learned_scale_do_not_fit(case, tmp_path):
    model = case.make_model()
    with pytest.raises(ValueError, match=r"2 missing \[.*scale_logit"):
        case.make_model(learn_scale=True).load_adapter(_saved(model, tmp_path), "default")


def _saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("config_cls", [DenseAlignerConfig, TextAdapterConfig])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, -0.2])
def test_a_learned_scale_starts_between_0_and_1(config_cls, scale):
    with pytest.raises(ValueError, match=f"scale={scale}: expected a value above 0 and below 1 with learn_scale"):
        config_cls(scale=scale, learn_scale=True)
    config_cls(scale=scale)


def test_sequential_adapters_have_no_learned_scale():
    with pytest.raises(ValueError, match="learn_scale: expected a field of BottleneckAdapterConfig"):
        BottleneckAdapterConfig(learn_scale=True)
