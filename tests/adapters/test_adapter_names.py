"""No adapter name can make the file of an adapter contain the weights of another, or lack its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from detris_peft.adapters.state_dict import adapter_state_dict, load_adapter_state_dict
from tests.helpers.adapter_cases import CLIP_TEXT, DINOV2, AdapterCase, each_tuner, randomize


def parts(model: torch.nn.Module) -> set[str]:
    return {part for key in model.state_dict() for part in key.split(".")}


@each_tuner
def test_names_that_are_part_of_a_key_are_refused(case: AdapterCase):
    """Every part of a key of this model is tried, whatever it is."""
    config = case.make_config(modules_to_save=["layernorm" if case.is_image_encoder else "final_layer_norm"])
    names = parts(get_peft_model(case.make_backbone(), copy.deepcopy(config))) - {"default"}
    assert {"model", "base_model", "base_layer", "0", "weight", "down", "modules_to_save", "original_module"} <= names
    model = case.make_model()
    keys, expected = list(model.state_dict()), case.run(model)
    for name in sorted(names):
        with pytest.raises(ValueError, match=rf"^adapter_name='{name}': .*; choose another adapter name\.$"):
            model.add_adapter(name, copy.deepcopy(config))
    assert list(model.peft_config) == ["default"]
    assert list(model.state_dict()) == keys
    assert torch.equal(case.run(model), expected)


@each_tuner
@pytest.mark.parametrize("name", ["model", "base_model", "2", "weight"])
def test_refused_names_of_a_first_adapter_leave_the_backbone_unchanged(case: AdapterCase, name: str):
    backbone = case.make_backbone()
    with pytest.raises(ValueError, match=rf"adapter_name='{name}': a module already has this name"):
        get_peft_model(backbone, case.make_config(), adapter_name=name)
    assert list(backbone.state_dict()) == list(case.make_backbone().state_dict())
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    get_peft_model(backbone, case.make_config())


@each_tuner
@pytest.mark.parametrize("name", ["", "a.b", "a/b", "../x", "a\\b", "keys", "forward", "training", "__base__"])
def test_names_that_cannot_name_a_module_or_folder_are_refused(case: AdapterCase, name: str):
    model = case.make_model()
    with pytest.raises(ValueError, match="adapter_name="):
        model.add_adapter(name, case.make_config())
    assert list(model.peft_config) == ["default"]
    case.run(model)


def test_the_name_of_an_earlier_adapter_is_checked_against_later_keys():
    """An adapter with `modules_to_save` adds keys that did not exist when the first adapter got its name."""
    model = DINOV2.make_model("original_module")
    with pytest.raises(ValueError, match="adapter_name='original_module': a module already has this name"):
        model.add_adapter("second", DINOV2.make_config(modules_to_save=["layernorm"]))
    DINOV2.run(model)


@each_tuner
def test_an_adapter_of_another_tuner_with_the_name_of_a_module(case: AdapterCase, tmp_path: Path):
    """LoRA accepts any name, and peft's functions select weights by names."""
    ours = case.make_model("ours")
    expected = adapter_state_dict(ours, "ours")
    get_peft_model(ours.get_base_model(), LoraConfig(target_modules=r".*(query|q_proj)"), adapter_name="mlp")
    with pytest.raises(ValueError, match=r"adapter 'ours': cannot be saved next to the adapter 'mlp', whose name is"):
        ours.save_pretrained(tmp_path, selected_adapters=["ours"])
    assert not list(tmp_path.rglob("*.safetensors"))
    found = adapter_state_dict(ours, "ours")  # our own function selects weights by modules
    assert found.keys() == expected.keys()


@each_tuner
def test_state_dict_functions_agree_with_the_files_of_peft(case: AdapterCase, tmp_path: Path):
    name = "layernorm" if case.is_image_encoder else "final_layer_norm"
    model = case.make_model("a", modules_to_save=[name])
    model.add_adapter("b", case.make_config(layers_to_transform=[1]))
    randomize(model, "b")
    model.save_pretrained(tmp_path)
    for adapter in ("a", "b"):
        ours, theirs = adapter_state_dict(model, adapter), load_file(tmp_path / adapter / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(ValueError, match=r"adapter_name='c': expected an adapter of the model \(a, b\)"):
        adapter_state_dict(model, "c")

    other = case.make_model("x", modules_to_save=[name])
    load_adapter_state_dict(other, "x", adapter_state_dict(model, "a"))
    assert torch.equal(case.run(other), case.run(model))


@each_tuner
def test_state_dict_of_a_compiled_or_wrapped_model(case: AdapterCase):
    """torch.compile and FSDP add names of wrappers to keys or modules; files do not contain them."""
    model = case.make_model()
    keys = adapter_state_dict(model, "default").keys()
    blocks = model.get_base_model().get_submodule(case.block_list)
    blocks[0] = torch.compile(blocks[0], backend="eager")
    assert any("_orig_mod" in key for key in model.state_dict())
    state = adapter_state_dict(model, "default")
    assert state.keys() == keys
    load_adapter_state_dict(model, "default", {key: value + 1 for key, value in state.items()})
    source = {key.replace("_orig_mod.", ""): value for key, value in model.state_dict().items()}  # as gathered by FSDP
    assert adapter_state_dict(model, "default", source).keys() == keys
    with pytest.raises(
        ValueError, match=r"state_dict: expected all weights of adapter 'default', but \d+ are missing"
    ):
        adapter_state_dict(model, "default", {})


@each_tuner
def test_files_of_an_adapter_do_not_depend_on_its_name(case: AdapterCase, tmp_path: Path):
    files = {}
    for name in ("default", "refcoco", "modelx"):
        model = case.make_model(name)
        files[name] = set(get_peft_model_state_dict(model, adapter_name=name))
    assert files["default"] == files["refcoco"] == files["modelx"]


def test_names_that_only_contain_a_part_of_a_key_are_accepted(tmp_path: Path):
    model = CLIP_TEXT.make_model("mlp2")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CLIP_TEXT.make_backbone(), tmp_path / "mlp2", adapter_name="my-layer")
    assert torch.equal(CLIP_TEXT.run(loaded.eval()), CLIP_TEXT.run(model))


@each_tuner
def test_checking_a_name_draws_no_random_numbers(case: AdapterCase):
    """Otherwise the seeded weights of an adapter would depend on the check."""
    backbone, config = case.make_backbone(), case.make_config()
    torch.manual_seed(0)
    model = get_peft_model(backbone, config)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for layer in model.base_model._adapted_layers:
        layer.make_branch(model.peft_config["default"])
    assert torch.equal(torch.get_rng_state(), state)
