"""LoRA on the attention and our adapter on the MLPs of one backbone: two peft wrappers with two adapter names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tests.helpers.adapter_cases import (
    CLIP_TEXT,
    DINOV2,
    IMAGE_CASES,
    AdapterCase,
    assert_differ,
    randomize,
)

ATTENTION = r".*att.*\.(q_proj|query|v_proj|value)"
both_tuners = pytest.mark.parametrize("case", [DINOV2, CLIP_TEXT, IMAGE_CASES[5]], ids=lambda case: case.name)


def wrap_twice(case: AdapterCase) -> tuple[PeftModel, PeftModel]:
    """Return the LoRA wrapper and our wrapper around the same backbone."""
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(case.make_backbone(), lora_config, adapter_name="lora")
    ours = get_peft_model(lora.get_base_model(), case.make_config(), adapter_name="ours")
    randomize(ours)
    lora.eval(), ours.eval()
    return lora, ours


pytestmark = pytest.mark.filterwarnings("ignore:.*peft_config.*", "ignore:.*second time.*")


@both_tuners
def test_each_tuner_is_enabled_and_disabled_separately(case: AdapterCase):
    lora, ours = wrap_twice(case)
    both, plain = case.run(ours), case.run(case.make_backbone())
    with ours.disable_adapter():
        only_lora = case.run(ours)
    torch.testing.assert_close(case.run(ours), both)
    lora.base_model.set_adapter([])
    only_ours = case.run(ours)
    with ours.disable_adapter():
        torch.testing.assert_close(case.run(ours), plain)
    lora.base_model.set_adapter("lora")
    torch.testing.assert_close(case.run(ours), both)
    for a, b in [(both, plain), (only_lora, plain), (only_ours, plain), (both, only_lora), (both, only_ours)]:
        assert_differ(a, b)
    with lora.disable_adapter():
        assert_differ(case.run(ours), both)


@both_tuners
def test_both_tuners_train_separately_and_together(case: AdapterCase):
    lora, ours = wrap_twice(case)

    def trained() -> set[str]:
        """Return which kinds of parameters get gradients."""
        ours.zero_grad()
        ours(**case.inputs()).last_hidden_state.sum().backward()
        return {
            kind
            for name, p in ours.named_parameters()
            if p.grad is not None
            for kind in ("lora_", "branches")
            if kind in name
        }

    assert trained() == {"lora_", "branches"}
    lora.set_requires_grad("lora", False)
    assert trained() == {"branches"}
    lora.set_requires_grad("lora", True)
    ours.set_requires_grad("ours", False)
    assert trained() == {"lora_"}


@both_tuners
def test_each_tuner_is_saved_and_loaded_separately(case: AdapterCase, tmp_path: Path):
    lora, ours = wrap_twice(case)
    both = case.run(ours)
    lora.save_pretrained(tmp_path, selected_adapters=["lora"])
    ours.save_pretrained(tmp_path, selected_adapters=["ours"])
    files = {name: load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "ours")}
    assert all("lora_" in key for key in files["lora"])
    assert all("_branches." in key for key in files["ours"])

    with ours.disable_adapter():
        only_lora = case.run(ours)
    lora.base_model.set_adapter([])
    only_ours = case.run(ours)
    for name, expected in (("lora", only_lora), ("ours", only_ours)):
        alone = PeftModel.from_pretrained(case.make_backbone(), tmp_path / name)
        torch.testing.assert_close(case.run(alone), expected, atol=1e-5, rtol=1e-5)
    first = PeftModel.from_pretrained(case.make_backbone(), tmp_path / "lora", adapter_name="lora")
    second = PeftModel.from_pretrained(first.get_base_model(), tmp_path / "ours", adapter_name="ours")
    torch.testing.assert_close(case.run(second), both, atol=1e-5, rtol=1e-5)


@both_tuners
def test_wrapper_around_the_lora_wrapper(case: AdapterCase, tmp_path: Path):
    """`get_peft_model(PeftModel)` saves a file that also loads without LoRA."""
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(case.make_backbone(), lora_config, adapter_name="lora")
    outer = get_peft_model(lora, case.make_config(), adapter_name="ours")
    randomize(outer)
    both = case.run(outer.eval())
    with outer.disable_adapter():
        only_lora = case.run(outer)
    assert_differ(both, only_lora)
    outer.save_pretrained(tmp_path, selected_adapters=["ours"])
    second = PeftModel.from_pretrained(case.make_backbone(), tmp_path / "ours", adapter_name="ours")
    lora.base_model.set_adapter([])
    torch.testing.assert_close(case.run(second), case.run(outer), atol=1e-5, rtol=1e-5)
    lora.base_model.set_adapter("lora")
    outer.unload()
    torch.testing.assert_close(case.run(lora), only_lora)


@both_tuners
def test_unloading_ours_keeps_lora(case: AdapterCase):
    lora, ours = wrap_twice(case)
    with ours.disable_adapter():
        only_lora = case.run(ours)
    ours.unload()
    torch.testing.assert_close(case.run(lora), only_lora)
    assert set(lora.peft_config) == {"lora"}
    merged = lora.merge_and_unload()
    torch.testing.assert_close(case.run(merged), only_lora, atol=1e-4, rtol=1e-4)


def test_unloading_keeps_modules_to_save_of_the_other_tuner():
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False, modules_to_save=["layernorm"])
    lora = get_peft_model(DINOV2.make_backbone(), lora_config, adapter_name="lora").eval()
    with torch.no_grad():
        next(p for name, p in lora.named_parameters() if "modules_to_save.lora" in name).mul_(2)
    before = DINOV2.run(lora)
    ours = get_peft_model(lora.get_base_model(), DINOV2.make_config(), adapter_name="ours").eval()
    ours.unload()
    lora.base_model.set_adapter("lora")  # peft uses the last activated adapter for all `modules_to_save`
    torch.testing.assert_close(DINOV2.run(lora), before)


@both_tuners
def test_lora_can_be_added_after_ours(case: AdapterCase, tmp_path: Path):
    ours = case.make_model("ours")
    only_ours = case.run(ours)
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(ours.get_base_model(), lora_config, adapter_name="lora").eval()
    both = case.run(lora)
    assert_differ(both, only_ours)
    ours.save_pretrained(tmp_path, selected_adapters=["ours"])
    reloaded = PeftModel.from_pretrained(case.make_backbone(), tmp_path / "ours")
    torch.testing.assert_close(case.run(reloaded), only_ours, atol=1e-5, rtol=1e-5)
    with ours.disable_adapter():
        assert_differ(case.run(lora), both)
    torch.testing.assert_close(case.run(lora), both)


def test_lora_can_be_inside_the_adapted_mlp():
    lora_config = LoraConfig(target_modules=["fc1", "fc2"], r=4, init_lora_weights=False)
    lora = get_peft_model(DINOV2.make_backbone(), lora_config, adapter_name="lora").eval()
    before = DINOV2.run(lora)
    ours = get_peft_model(
        lora.get_base_model(), DINOV2.make_config(init_weights="identity"), adapter_name="ours"
    ).eval()
    torch.testing.assert_close(DINOV2.run(ours), before)
    assert torch.isfinite(DINOV2.run(ours)).all()
