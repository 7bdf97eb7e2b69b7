"""LoRA on the attention and our adapter on the MLP of one backbone: two peft wraps of it, under two names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tests.helpers.adapter_cases import CLIP_TEXT, DINOV2, IMAGE_CASES, Case, assert_differ, stir

ATTENTION = r".*att.*\.(q_proj|query|v_proj|value)"
both_tuners = pytest.mark.parametrize("case", [DINOV2, CLIP_TEXT, IMAGE_CASES[5]], ids=lambda case: case.name)


def two_wraps(case: Case) -> tuple[PeftModel, PeftModel]:
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(case.backbone(), lora_config, adapter_name="lora")
    ours = get_peft_model(lora.get_base_model(), case.config(), adapter_name="ours")
    stir(ours)
    lora.eval(), ours.eval()
    return lora, ours


pytestmark = pytest.mark.filterwarnings("ignore:.*peft_config.*", "ignore:.*second time.*")


@both_tuners
def test_switched_separately(case: Case):
    lora, ours = two_wraps(case)
    both, plain = case.states(ours), case.states(case.backbone())
    with ours.disable_adapter():
        only_lora = case.states(ours)
    torch.testing.assert_close(case.states(ours), both)
    lora.base_model.set_adapter([])
    only_ours = case.states(ours)
    with ours.disable_adapter():
        torch.testing.assert_close(case.states(ours), plain)
    lora.base_model.set_adapter("lora")
    torch.testing.assert_close(case.states(ours), both)
    for a, b in [(both, plain), (only_lora, plain), (only_ours, plain), (both, only_lora), (both, only_ours)]:
        assert_differ(a, b)
    with lora.disable_adapter():
        assert_differ(case.states(ours), both)


@both_tuners
def test_trained_separately_and_together(case: Case):
    lora, ours = two_wraps(case)

    def trained() -> set[str]:
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
def test_saved_and_loaded_separately(case: Case, tmp_path: Path):
    lora, ours = two_wraps(case)
    both = case.states(ours)
    lora.save_pretrained(tmp_path, selected_adapters=["lora"])
    ours.save_pretrained(tmp_path, selected_adapters=["ours"])
    files = {name: load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "ours")}
    assert all("lora_" in key for key in files["lora"])
    assert all("_branches." in key for key in files["ours"])

    with ours.disable_adapter():
        only_lora = case.states(ours)
    lora.base_model.set_adapter([])
    only_ours = case.states(ours)
    for name, expected in (("lora", only_lora), ("ours", only_ours)):
        alone = PeftModel.from_pretrained(case.backbone(), tmp_path / name)
        torch.testing.assert_close(case.states(alone), expected, atol=1e-5, rtol=1e-5)
    first = PeftModel.from_pretrained(case.backbone(), tmp_path / "lora", adapter_name="lora")
    second = PeftModel.from_pretrained(first.get_base_model(), tmp_path / "ours", adapter_name="ours")
    torch.testing.assert_close(case.states(second), both, atol=1e-5, rtol=1e-5)


@both_tuners
def test_a_wrap_around_the_wrap(case: Case, tmp_path: Path):
    """`get_peft_model` of a `PeftModel`: same weights, same file."""
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(case.backbone(), lora_config, adapter_name="lora")
    outer = get_peft_model(lora, case.config(), adapter_name="ours")
    stir(outer)
    both = case.states(outer.eval())
    with outer.disable_adapter():
        only_lora = case.states(outer)
    assert_differ(both, only_lora)
    outer.save_pretrained(tmp_path, selected_adapters=["ours"])
    second = PeftModel.from_pretrained(case.backbone(), tmp_path / "ours", adapter_name="ours")
    lora.base_model.set_adapter([])
    torch.testing.assert_close(case.states(second), case.states(outer), atol=1e-5, rtol=1e-5)
    lora.base_model.set_adapter("lora")
    outer.unload()
    torch.testing.assert_close(case.states(lora), only_lora)


@both_tuners
def test_taking_ours_off_leaves_lora(case: Case):
    lora, ours = two_wraps(case)
    with ours.disable_adapter():
        only_lora = case.states(ours)
    ours.unload()
    torch.testing.assert_close(case.states(lora), only_lora)
    assert set(lora.peft_config) == {"lora"}
    merged = lora.merge_and_unload()
    torch.testing.assert_close(case.states(merged), only_lora, atol=1e-4, rtol=1e-4)


def test_modules_to_save_stay_with_their_tuner():
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False, modules_to_save=["layernorm"])
    lora = get_peft_model(DINOV2.backbone(), lora_config, adapter_name="lora").eval()
    with torch.no_grad():
        next(p for name, p in lora.named_parameters() if "modules_to_save.lora" in name).mul_(2)
    before = DINOV2.states(lora)
    ours = get_peft_model(lora.get_base_model(), DINOV2.config(), adapter_name="ours").eval()
    ours.unload()
    lora.base_model.set_adapter("lora")  # peft switches every `modules_to_save` to the adapter set last
    torch.testing.assert_close(DINOV2.states(lora), before)


@both_tuners
def test_ours_first_and_lora_second(case: Case, tmp_path: Path):
    ours = case.adapted("ours")
    only_ours = case.states(ours)
    lora_config = LoraConfig(target_modules=ATTENTION, r=4, init_lora_weights=False)
    lora = get_peft_model(ours.get_base_model(), lora_config, adapter_name="lora").eval()
    both = case.states(lora)
    assert_differ(both, only_ours)
    ours.save_pretrained(tmp_path, selected_adapters=["ours"])
    again = PeftModel.from_pretrained(case.backbone(), tmp_path / "ours")
    torch.testing.assert_close(case.states(again), only_ours, atol=1e-5, rtol=1e-5)
    with ours.disable_adapter():
        assert_differ(case.states(lora), both)
    torch.testing.assert_close(case.states(lora), both)


def test_lora_inside_the_mlp_too():
    lora_config = LoraConfig(target_modules=["fc1", "fc2"], r=4, init_lora_weights=False)
    lora = get_peft_model(DINOV2.backbone(), lora_config, adapter_name="lora").eval()
    before = DINOV2.states(lora)
    ours = get_peft_model(lora.get_base_model(), DINOV2.config(init_weights="identity"), adapter_name="ours").eval()
    torch.testing.assert_close(DINOV2.states(ours), before)
    assert torch.isfinite(DINOV2.states(ours)).all()
