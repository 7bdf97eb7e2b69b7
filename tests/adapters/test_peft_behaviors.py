"""peft's operations, for all tuners and backbones."""

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

from tests.helpers.adapter_cases import (
    DIM,
    AdapterCase,
    assert_differ,
    each_parallel_tuner,
    each_tuner,
    every_case,
    randomize,
    select_samples,
)


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    # Not bit-identical: PyTorch sums a strided input of Linear in a different order if the weight is frozen.
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@every_case
def test_the_selected_blocks_get_adapters_and_only_they_are_trained(case: AdapterCase):
    model = case.make_model()
    blocks = model.get_base_model().get_submodule(case.block_list)
    layers = [name for name, module in blocks.named_modules() if isinstance(module, BaseTunerLayer)]
    assert layers == [f"{block}.{target}" for block in (0, 2) for target in case.targets]
    prefix = model.base_model.prefix
    assert all(p.requires_grad == (prefix in name) for name, p in model.named_parameters())
    assert_differ(case.run(model), case.run(case.make_backbone()))
    # The wrapper exposes every submodule of the backbone and hides none behind an attribute of the same name.
    for name, child in model.get_base_model().named_children():
        assert name == "model" or getattr(model, name) is child  # peft uses `model` for itself


@every_case
def test_loading_under_another_name_is_bit_identical(case: AdapterCase, tmp_path: Path):
    model = case.make_model()
    model.save_pretrained(tmp_path)
    expected = case.run(model)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    own = [key for key, _ in (*model.named_parameters(), *model.named_buffers()) if ".default." in key]
    assert saved.keys() == {key.replace(".default.", ".") for key in own}  # shared ones once
    assert any("running_var" in key for key in saved) == case.has_statistics

    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(
            case.make_backbone(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert torch.equal(case.run(loaded.eval()), expected)
        # A second adapter whose name contains the tuner's prefix.
        other = f"{model.base_model.prefix}refcoco"
        result = loaded.load_adapter(tmp_path, other, low_cpu_mem_usage=low_cpu_mem_usage)
        assert not result.missing_keys
        assert not result.unexpected_keys
        loaded.set_adapter(other)
        assert torch.equal(case.run(loaded), expected)
        assert not [name for name, p in loaded.named_parameters() if p.is_meta]


@every_case
def test_several_adapters_can_be_activated_and_deleted(case: AdapterCase):
    plain = case.run(case.make_backbone())
    model = case.make_model("a")
    a = case.run(model)
    model.add_adapter("b", case.make_config(layers_to_transform=[1, 2], scale=0.5))
    randomize(model, "b")
    assert_close(case.run(model), a)  # adding does not activate
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".b." in name} == set()
    model.set_adapter("b")
    b = case.run(model)
    assert_differ(a, b)
    assert all(p.requires_grad == (".b." in name) for name, p in model.named_parameters())
    model.base_model.set_adapter(["a", "b"])
    assert_differ(case.run(model), b)
    model.set_adapter("b")
    with model.disable_adapter():
        assert_close(case.run(model), plain)
    assert_close(case.run(model), b)

    model.delete_adapter("b")
    assert model.active_adapters == ["a"]
    assert not [key for key in model.state_dict() if ".b." in key]
    assert_close(case.run(model), a)
    model.delete_adapter("a")
    assert model.active_adapters == []
    assert_close(case.run(model.base_model), plain)


@every_case
def test_unload_returns_the_original_backbone(case: AdapterCase):
    backbone = case.make_backbone()
    keys, plain = set(backbone.state_dict()), case.run(backbone)
    model = get_peft_model(backbone, case.make_config())
    assert set(get_base_model_state_dict(model)) == keys
    unloaded = model.unload()
    assert set(unloaded.state_dict()) == keys
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert not any(module._forward_pre_hooks for module in unloaded.modules())
    assert not hasattr(unloaded, "peft_config")
    assert_close(case.run(unloaded), plain)
    get_peft_model(unloaded, case.make_config())  # can be adapted again


@each_tuner
def test_set_requires_grad_freezes_and_unfreezes_an_adapter(case: AdapterCase):
    model = case.make_model()
    model.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad(["default"], True)
    assert any(p.requires_grad for p in model.parameters())


@every_case
def test_adapter_state_dict_transfers_to_another_model(case: AdapterCase):
    source, target = case.make_model("a"), case.make_model("b")
    state = get_peft_model_state_dict(source, adapter_name="a")
    assert_differ(case.run(source), case.run(target))
    result = set_peft_model_state_dict(target, state, adapter_name="b")
    assert not result.unexpected_keys
    assert_close(case.run(source), case.run(target))


@each_tuner
def test_only_the_selected_adapter_is_saved(case: AdapterCase, tmp_path: Path):
    """Also if one adapter name contains another."""
    model = case.make_model()
    count = len(get_peft_model_state_dict(model))
    for name in ("default2", "other_default", "foodefault_bar", "efaul", "own"):
        model.add_adapter(name, case.make_config())
        assert len(get_peft_model_state_dict(model, adapter_name=name)) == count
    model.save_pretrained(tmp_path, selected_adapters=["default", "own"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == count
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "own" / "adapter_model.safetensors").keys()
    )


@every_case
def test_inject_adapter_in_model_works_with_and_without_weights(case: AdapterCase):
    model = inject_adapter_in_model(case.make_config(), case.make_backbone(), adapter_name="injected")
    randomize(model)
    state = get_peft_model_state_dict(model, adapter_name="injected")
    assert_differ(case.run(model), case.run(case.make_backbone()))
    empty = inject_adapter_in_model(case.make_config(), case.make_backbone(), low_cpu_mem_usage=True)
    assert any(p.is_meta for p in empty.parameters())
    set_peft_model_state_dict(empty, state, low_cpu_mem_usage=True)
    assert_close(case.run(empty), case.run(model))


@every_case
def test_adapter_methods_of_transformers_work(case: AdapterCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # transformers 5.24 requires an unreleased peft version, but calls only functions that 0.21 has.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")
    model = case.make_backbone()
    plain = case.run(model)
    model.add_adapter(case.make_config(), adapter_name="mine")
    randomize(model)
    adapted = case.run(model)
    model.disable_adapters()
    assert_close(case.run(model), plain)
    model.enable_adapters()
    assert_close(case.run(model), adapted)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()

    reloaded = case.make_backbone()
    reloaded.load_adapter(str(tmp_path), adapter_name="loaded")
    assert_close(case.run(reloaded.eval()), adapted)
    assert_close(case.run(PeftModel.from_pretrained(case.make_backbone(), tmp_path)), adapted)
    reloaded.delete_adapter("loaded")
    assert_close(case.run(reloaded), plain)


@each_tuner
def test_auto_classes_of_peft_load_the_adapter_and_its_config(case: AdapterCase, tmp_path: Path):
    backbone = case.make_backbone()
    backbone.save_pretrained(tmp_path / "backbone")
    model = get_peft_model(type(backbone).from_pretrained(tmp_path / "backbone"), case.make_config())
    randomize(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert_close(case.run(loaded), case.run(model))

    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert type(config) is type(case.make_config())
    assert config.dim == DIM
    assert config.layers_to_transform == [0, 2]
    assert config.peft_type.value == case.peft_type
    reloaded = type(config).from_pretrained(tmp_path / "adapter")
    assert reloaded.to_dict() == config.to_dict()


@each_tuner
def test_config_is_unchanged_after_saving_and_loading(case: AdapterCase, tmp_path: Path):
    config = case.make_config(
        target_modules=["mlp", "other"], exclude_modules=["head"], layers_to_transform=1, layers_pattern=["layers?"]
    )
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert loaded.target_modules == {"mlp", "other"}
    assert loaded.exclude_modules == {"head"}
    assert loaded.layers_to_transform == 1
    assert loaded.layers_pattern == ["layers?"]


@each_tuner
def test_status_parameter_counts_and_repr(case: AdapterCase, capsys: pytest.CaptureFixture):
    model = case.make_model()
    model.add_adapter("second", case.make_config())
    for status in (model.get_model_status(), get_model_status(model)):
        assert status.num_adapter_layers == 2 * len(case.targets)
        assert status.enabled is True
        assert status.active_adapters == ["default"]
        assert status.merged_adapters == []
        assert status.available_adapters == ["default", "second"]
        assert status.requires_grad == {"default": True, "second": False}
    names = [layer.name for layer in get_layer_status(model)]
    assert [name.endswith(target) for name, target in zip(names, case.targets * 2, strict=True)] == [True] * len(names)
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    assert f"trainable params: {trainable:,} || all params: {total:,}" in capsys.readouterr().out
    assert trainable == sum(p.numel() for name, p in model.named_parameters() if ".default." in name)
    assert "scale={'default': 0.2" in repr(model)
    assert not model.supports_lora_conversion()


@each_tuner
def test_modules_to_save_are_trained_saved_and_loaded(case: AdapterCase, tmp_path: Path):
    """`modules_to_save` names a module of the backbone that is trained and saved completely."""
    name = "layernorm" if case.is_image_encoder else "final_layer_norm"
    model = case.make_model(modules_to_save=[name])
    trained = [key for key, p in model.named_parameters() if p.requires_grad and name in key]
    assert trained
    with torch.no_grad():
        model.get_parameter(trained[0]).mul_(1.5)
    expected = case.run(model)
    model.save_pretrained(tmp_path)
    assert_close(case.run(PeftModel.from_pretrained(case.make_backbone(), tmp_path)), expected)
    with model.disable_adapter():
        assert_close(case.run(model), case.run(case.make_backbone()))
    assert set(model.unload().state_dict()) == set(case.make_backbone().state_dict())


@every_case
def test_mixed_batch_equals_separate_samples(case: AdapterCase):
    model = case.make_model("refcoco")
    model.add_adapter("gref", case.make_config(layers_to_transform=[1]))
    randomize(model, "gref")
    mixed = case.run(model, adapter_names=["gref", "__base__", "refcoco"])
    with torch.no_grad():
        for row, name in ((0, "gref"), (2, "refcoco")):
            model.set_adapter(name)
            assert_close(mixed[[row]], model(**select_samples(case.inputs(), [row])).last_hidden_state)
        with model.disable_adapter():
            assert_close(mixed[[1]], model(**select_samples(case.inputs(), [1])).last_hidden_state)
    assert_close(case.run(model, adapter_names=["__base__"] * 3), case.run(case.make_backbone()))
    # `adapter_names` applies to one call only.
    assert_close(case.run(model), case.run(model, adapter_names=["refcoco"] * 3))


@every_case
def test_deepcopy_is_independent_of_the_original(case: AdapterCase):
    model = case.make_model()
    before = case.run(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in copied.named_parameters():
            if ".default.up." in name:
                p.zero_()
    assert_close(case.run(model), before)
    assert_close(case.run(copied), case.run(case.make_backbone()))
    copied.unload()
    assert_close(case.run(model), before)


@each_tuner
def test_training_changes_only_the_adapters(case: AdapterCase, tmp_path: Path):
    model = case.make_model().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**case.inputs()).last_hidden_state.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".default." in name for name in changed)
    model.eval().save_pretrained(tmp_path)
    assert_close(case.run(PeftModel.from_pretrained(case.make_backbone(), tmp_path)), case.run(model))


@each_parallel_tuner
def test_adding_a_frozen_adapter_keeps_the_first_in_training_mode(case: AdapterCase):
    """peft freezes the first adapter temporarily while it adds one for inference."""
    model = case.make_model().train()
    model.add_adapter("frozen", case.make_config(inference_mode=True))
    before = {key: value.clone() for key, value in model.named_buffers() if "running_mean" in key}
    model(**case.inputs())
    assert all(torch.equal(before[key], model.get_buffer(key)) == (".frozen." in key) for key in before)
