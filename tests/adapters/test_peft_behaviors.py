"""Every verb of peft, for both tuners on every backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_base_model_state_dict,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from tests.helpers.adapter_cases import DIM, Case, assert_differ, each_tuner, every_case, stir, with_batch


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    # Not to the bit: PyTorch sums a strided input of Linear in another order when the weight is frozen.
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@every_case
def test_the_adapters_sit_beside_the_mlps_and_only_they_train(case: Case):
    model = case.adapted()
    blocks = model.get_base_model().get_submodule(case.blocks)
    layers = [name for name, module in blocks.named_modules() if isinstance(module, BaseTunerLayer)]
    assert layers == [f"0.{case.mlp}", f"2.{case.mlp}"]
    prefix = model.base_model.prefix
    assert all(p.requires_grad == (prefix in name) for name, p in model.named_parameters())
    assert_differ(case.states(model), case.states(case.backbone()))
    # The wrap passes the backbone's attributes through, and hides none with its own.
    for name, child in model.get_base_model().named_children():
        assert name == "model" or getattr(model, name) is child  # `model` is peft's own word


@every_case
def test_save_and_load_under_another_name_to_the_bit(case: Case, tmp_path: Path):
    model = case.adapted()
    model.save_pretrained(tmp_path)
    expected = case.states(model)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == {key.replace(".default.", ".") for key in model.state_dict() if ".default." in key}
    assert any("running_var" in key for key in saved)

    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(
            case.backbone(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert torch.equal(case.states(loaded.eval()), expected)
        # Another name, one that contains the tuner's prefix, on top of a first adapter.
        other = f"{model.base_model.prefix}refcoco"
        result = loaded.load_adapter(tmp_path, other, low_cpu_mem_usage=low_cpu_mem_usage)
        assert not result.missing_keys
        assert not result.unexpected_keys
        loaded.set_adapter(other)
        assert torch.equal(case.states(loaded), expected)
        assert not [name for name, p in loaded.named_parameters() if p.is_meta]


@every_case
def test_several_adapters_are_switched_and_deleted(case: Case):
    plain = case.states(case.backbone())
    model = case.adapted("a")
    a = case.states(model)
    model.add_adapter("b", case.config(layers_to_transform=[1, 2], scale=0.5))
    stir_only(model, "b")
    same(case.states(model), a)  # added is not yet active
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".b." in name} == set()
    model.set_adapter("b")
    b = case.states(model)
    assert_differ(a, b)
    assert all(p.requires_grad == (".b." in name) for name, p in model.named_parameters())
    model.base_model.set_adapter(["a", "b"])
    assert_differ(case.states(model), b)
    model.set_adapter("b")
    with model.disable_adapter():
        same(case.states(model), plain)
    same(case.states(model), b)

    model.delete_adapter("b")
    assert model.active_adapters == ["a"]
    assert not [key for key in model.state_dict() if ".b." in key]
    same(case.states(model), a)
    model.delete_adapter("a")
    assert model.active_adapters == []
    same(case.states(model.base_model), plain)


def stir_only(model: nn.Module, name: str) -> None:
    stir(nn.ModuleList([m for key, m in model.named_modules() if key.endswith(f"_branches.{name}")]))


@every_case
def test_unload_gives_the_backbone_back(case: Case):
    backbone = case.backbone()
    keys, plain = set(backbone.state_dict()), case.states(backbone)
    model = get_peft_model(backbone, case.config())
    assert set(get_base_model_state_dict(model)) == keys
    unloaded = model.unload()
    assert set(unloaded.state_dict()) == keys
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert not any(module._forward_pre_hooks for module in unloaded.modules())
    assert not hasattr(unloaded, "peft_config")
    same(case.states(unloaded), plain)
    get_peft_model(unloaded, case.config())  # and can be adapted anew


@each_tuner
def test_set_requires_grad(case: Case):
    model = case.adapted()
    model.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad(["default"], True)
    assert any(p.requires_grad for p in model.parameters())


@every_case
def test_state_dict_out_and_in(case: Case):
    source, target = case.adapted("a"), case.adapted("b")
    state = get_peft_model_state_dict(source, adapter_name="a")
    assert_differ(case.states(source), case.states(target))
    result = set_peft_model_state_dict(target, state, adapter_name="b")
    assert not result.unexpected_keys
    same(case.states(source), case.states(target))


@each_tuner
def test_only_the_asked_adapter_is_saved(case: Case, tmp_path: Path):
    """Adapter names that are parts of one another."""
    model = case.adapted()
    count = len(get_peft_model_state_dict(model))
    for name in ("default2", "other_default", "foodefault_bar", "efaul", "own"):
        model.add_adapter(name, case.config())
        assert len(get_peft_model_state_dict(model, adapter_name=name)) == count
    model.save_pretrained(tmp_path, selected_adapters=["default", "own"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == count
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "own" / "adapter_model.safetensors").keys()
    )


@every_case
def test_inject_adapter_in_model(case: Case):
    model = inject_adapter_in_model(case.config(), case.backbone(), adapter_name="injected")
    stir(model)
    state = get_peft_model_state_dict(model, adapter_name="injected")
    assert_differ(case.states(model), case.states(case.backbone()))
    empty = inject_adapter_in_model(case.config(), case.backbone(), low_cpu_mem_usage=True)
    assert any(p.is_meta for p in empty.parameters())
    set_peft_model_state_dict(empty, state, low_cpu_mem_usage=True)
    same(case.states(empty), case.states(model))


@every_case
def test_transformers_own_verbs(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # transformers 5.24 asks for a peft that is not out yet; what it calls is there already.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")
    model = case.backbone()
    plain = case.states(model)
    model.add_adapter(case.config(), adapter_name="mine")
    stir(model)
    adapted = case.states(model)
    model.disable_adapters()
    same(case.states(model), plain)
    model.enable_adapters()
    same(case.states(model), adapted)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()

    again = case.backbone()
    again.load_adapter(str(tmp_path), adapter_name="loaded")
    same(case.states(again.eval()), adapted)
    same(case.states(PeftModel.from_pretrained(case.backbone(), tmp_path)), adapted)
    again.delete_adapter("loaded")
    same(case.states(again), plain)


@each_tuner
def test_auto_peft_model_and_config(case: Case, tmp_path: Path):
    backbone = case.backbone()
    backbone.save_pretrained(tmp_path / "backbone")
    model = get_peft_model(type(backbone).from_pretrained(tmp_path / "backbone"), case.config())
    stir(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    same(case.states(loaded), case.states(model))

    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert type(config) is type(case.config())
    assert config.dim == DIM
    assert config.layers_to_transform == [0, 2]
    assert config.peft_type.value == ("DENSE_ALIGNER" if case.takes_images else "TEXT_ADAPTER")
    again = type(config).from_pretrained(tmp_path / "adapter")
    assert again.to_dict() == config.to_dict()


@each_tuner
def test_config_survives_a_round_trip(case: Case, tmp_path: Path):
    config = case.config(
        target_modules=["mlp", "other"], exclude_modules=["head"], layers_to_transform=1, layers_pattern=["layers?"]
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert loaded.target_modules == {"mlp", "other"}
    assert loaded.exclude_modules == {"head"}
    assert loaded.layers_to_transform == 1
    assert loaded.layers_pattern == ["layers?"]


@each_tuner
def test_status_and_repr(case: Case, capsys: pytest.CaptureFixture):
    model = case.adapted()
    model.add_adapter("second", case.config())
    for status in (model.get_model_status(), get_model_status(model)):
        assert status.num_adapter_layers == 2
        assert status.enabled is True
        assert status.active_adapters == ["default"]
        assert status.merged_adapters == []
        assert status.available_adapters == ["default", "second"]
        assert status.requires_grad == {"default": True, "second": False}
    assert [layer.name.endswith(case.mlp) for layer in get_layer_status(model)] == [True, True]
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    assert f"trainable params: {trainable:,} || all params: {total:,}" in capsys.readouterr().out
    assert trainable == sum(p.numel() for name, p in model.named_parameters() if ".default." in name)
    assert "scale={'default': 0.2" in repr(model)
    assert not model.supports_lora_conversion()


@each_tuner
def test_modules_to_save(case: Case, tmp_path: Path):
    """A further module of the backbone, trained and saved whole."""
    name = "layernorm" if case.takes_images else "final_layer_norm"
    model = case.adapted(modules_to_save=[name])
    trained = [key for key, p in model.named_parameters() if p.requires_grad and name in key]
    assert trained
    with torch.no_grad():
        model.get_parameter(trained[0]).mul_(1.5)
    expected = case.states(model)
    model.save_pretrained(tmp_path)
    same(case.states(PeftModel.from_pretrained(case.backbone(), tmp_path)), expected)
    with model.disable_adapter():
        same(case.states(model), case.states(case.backbone()))
    assert set(model.unload().state_dict()) == set(case.backbone().state_dict())


@every_case
def test_mixed_batches_equal_each_row_alone(case: Case):
    model = case.adapted("refcoco")
    model.add_adapter("gref", case.config(layers_to_transform=[1]))
    stir_only(model, "gref")
    mixed = case.states(model, adapter_names=["gref", "__base__", "refcoco"])
    with torch.no_grad():
        for row, name in ((0, "gref"), (2, "refcoco")):
            model.set_adapter(name)
            same(mixed[[row]], model(**with_batch(case, [row])).last_hidden_state)
        with model.disable_adapter():
            same(mixed[[1]], model(**with_batch(case, [1])).last_hidden_state)
    same(case.states(model, adapter_names=["__base__"] * 3), case.states(case.backbone()))
    # The names were for that call only.
    same(case.states(model), case.states(model, adapter_names=["refcoco"] * 3))


@every_case
def test_deepcopy_gives_an_independent_working_copy(case: Case):
    model = case.adapted()
    before = case.states(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if ".default.up." in name:
                p.zero_()
    same(case.states(model), before)
    same(case.states(twin), case.states(case.backbone()))
    twin.unload()
    same(case.states(model), before)


@each_tuner
def test_training_moves_the_adapters_alone(case: Case, tmp_path: Path):
    model = case.adapted().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**case.inputs()).last_hidden_state.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".default." in name for name in moved)
    model.eval().save_pretrained(tmp_path)
    same(case.states(PeftModel.from_pretrained(case.backbone(), tmp_path)), case.states(model))


@each_tuner
def test_an_adapter_added_in_training_leaves_the_first_in_training(case: Case):
    """Adding a second adapter, for inference, freezes the first for a moment; its BatchNorm must go on."""
    model = case.adapted().train()
    model.add_adapter("frozen", case.config(inference_mode=True))
    before = {key: value.clone() for key, value in model.named_buffers() if "running_mean" in key}
    model(**case.inputs())
    assert all(torch.equal(before[key], model.get_buffer(key)) == (".frozen." in key) for key in before)
