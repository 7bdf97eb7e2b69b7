"""Invalid input. Each error message contains the expected value, the given value and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from detris_peft import DenseAlignerConfig, TextAdapterConfig
from tests.helpers.adapter_cases import (
    CLIP_TEXT,
    DINOV2,
    IMAGE_CASES,
    TEXT_CASES,
    TEXT_DIM,
    AdapterCase,
    each_tuner,
    every_image_case,
)


@pytest.mark.parametrize(
    ("config_cls", "fields", "message"),
    [
        (DenseAlignerConfig, {"dim": 100}, "dim=100: expected a positive multiple of 16"),
        (TextAdapterConfig, {"dim": 0}, "dim=0: expected a positive multiple of 16"),
        (TextAdapterConfig, {"dim": 8}, "dim=8: expected a positive multiple of 16"),
        (DenseAlignerConfig, {"layers_to_transform": []}, r"layers_to_transform=\[\]: expected at least one block"),
        (TextAdapterConfig, {"layers_to_transform": [-1]}, r"layers_to_transform=\[-1\]: .* counted from 0"),
        (
            TextAdapterConfig,
            {"layers_to_transform": ["1"]},
            r"layers_to_transform=\['1'\]: expected at least one block",
        ),
        (
            TextAdapterConfig,
            {"layers_to_transform": [2], "target_modules": r".*mlp"},
            r"layers_to_transform=\[2\] has no effect with the regular expression target_modules='\.\*mlp'; "
            "select the blocks in one of the two",
        ),
        (
            TextAdapterConfig,
            {"target_modules": "all-linear"},
            'all-linear" is not supported: target the MLP.*leave target_modules unset',
        ),
        (DenseAlignerConfig, {"init_weights": "zeros"}, 'init_weights=\'zeros\': expected "paper" or "identity"'),
        (
            DenseAlignerConfig,
            {"cross_attention_heads": 7},
            "cross_attention_heads=7: expected a divisor of cross_attention_dim=128",
        ),
        (DenseAlignerConfig, {"cross_attention_heads": 0}, "cross_attention_heads=0: expected a divisor"),
        (
            DenseAlignerConfig,
            {"cross_attention_dropout": 1.0},
            r"cross_attention_dropout=1\.0: expected a value in \[0, 1\)",
        ),
        (
            DenseAlignerConfig,
            {"text_dim": 0},
            "text_dim=0: expected the width of the text encoder's hidden states, at least 1",
        ),
    ],
)
def test_invalid_config_fields(config_cls: type, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_cls(**fields)


@each_tuner
def test_layers_that_the_backbone_does_not_have(case: AdapterCase):
    backbone = case.make_backbone()
    with pytest.raises(
        ValueError, match=r"layers_to_transform: expected blocks 0 to 2 of \w+, counted from 0, got 3, 7"
    ):
        get_peft_model(backbone, case.make_config(layers_to_transform=[0, 3, 7]))
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    assert set(backbone.state_dict()) == set(case.make_backbone().state_dict())


@each_tuner
def test_modules_to_save_that_the_backbone_does_not_have(case: AdapterCase):
    """peft would ignore the name, and the module that the user meant would not be trained."""
    with pytest.raises(ValueError, match=r"modules_to_save: expected modules of \w+, got layernrm; correct or remove"):
        get_peft_model(case.make_backbone(), case.make_config(modules_to_save=["layernrm"]))


@every_image_case
def test_invalid_text_states(case: AdapterCase):
    model = case.make_model()
    images = case.inputs()
    good = images.pop("text_states")
    for bad, message in [
        (None, r"text_states is missing: pass the text encoder's last hidden states \(B, L, T\).*disable_adapter"),
        (good[:2], r"text_states: expected shape \(3, L, T\), one sentence per image, got \(2, 5, 24\)"),
        (good[:, 0], r"text_states: expected shape \(3, L, T\), .* got \(3, 24\)"),
        (
            good[..., :20],
            r"text_states: expected width 24, got 20; set DenseAlignerConfig\(text_dim=20\), or use the text encoder",
        ),
        (
            good.to("meta"),
            "text_states: expected a tensor on cpu, the device of the image encoder, got meta; move one",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**images, text_states=bad)
    with pytest.raises(ValueError, match="text_states is missing"):
        model(**images)
    with torch.no_grad(), model.disable_adapter():
        model(**images)  # the plain backbone needs no text
    model(**images, text_states=good)


@every_image_case
def test_image_sizes_that_are_not_multiples_of_the_patch_size(case: AdapterCase):
    inputs = case.inputs()
    inputs["pixel_values"] = torch.randn(3, 3, 28, 40)
    message = (
        r"pixel_values: expected height and width .* multiples of the patch size, 14 and 14, got 28 and 40; resize"
    )
    with pytest.raises(ValueError, match=message):
        case.make_model()(**inputs)


def test_missing_or_wrong_patch_grid():
    encoder = DINOV2.make_model().get_base_model().encoder
    with pytest.raises(
        ValueError, match=r"patch_grid: expected \(h, w\) for 7 tokens, got None; .*or pass patch_grid=\(h, w\)"
    ):
        encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM))
    with pytest.raises(ValueError, match=r"patch_grid: expected \(h, w\) for 7 tokens, got \(3, 4\)"):
        encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM), patch_grid=(3, 4))
    encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM), patch_grid=(2, 3))


@each_tuner
def test_loading_an_adapter_of_a_different_backbone(case: AdapterCase, tmp_path: Path):
    model = case.make_model()
    model.save_pretrained(tmp_path)
    wide = case.backbone_config()
    wide.hidden_size = 64
    message = (
        r"do not fit this backbone: expected \((16, 64|4, 16, 3)\) for .*, got \((16, 32|4, 8, 3)\); load them over"
    )
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(case.model_cls(wide), tmp_path)
    shallow = case.backbone_config()
    shallow.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"expected blocks 0 to 1 of \w+, counted from 0, got 2\."):
        PeftModel.from_pretrained(case.model_cls(shallow), tmp_path)
    other = (IMAGE_CASES if case.is_image_encoder else TEXT_CASES)[3]
    with pytest.raises(ValueError, match=r"do not fit adapter|input_module|not found"):
        PeftModel.from_pretrained(other.make_backbone(), tmp_path)


@each_tuner
def test_missing_and_unexpected_keys(case: AdapterCase, tmp_path: Path):
    model = case.make_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    name = "running_var" if case.has_statistics else "up.bias"
    missing = next(key for key in state if name in key)
    save_file({key: value for key, value in state.items() if key != missing}, file)
    for low_cpu_mem_usage in (False, True):
        with pytest.raises(ValueError, match=r"do not fit adapter 'default' .*1 missing .*(running_var|up.bias)"):
            PeftModel.from_pretrained(case.make_backbone(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    state = get_peft_model_state_dict(model)
    state[missing.replace(name, "gone")] = torch.ones(1)
    with pytest.raises(ValueError, match=r"0 missing .*1 unexpected .*gone"):
        set_peft_model_state_dict(model, state)


@each_tuner
def test_adapter_names_that_are_in_use_or_unknown(case: AdapterCase):
    model = case.make_model()
    with pytest.raises(ValueError, match="'default' already exists"):
        model.add_adapter("default", case.make_config())
    with pytest.raises(
        ValueError,
        match=r"adapter_name='default': expected a new name, \w+ already has an adapter .*pass another adapter_name",
    ):
        get_peft_model(model.get_base_model(), case.make_config())
    with pytest.raises(ValueError, match=r"adapter_name='down': a module already has this name"):
        model.add_adapter("down", case.make_config())
    with pytest.raises(ValueError, match=r"adapter_name='encoder': a module already has this name"):
        model.add_adapter("encoder", case.make_config())
    assert set(model.peft_config) == {"default"}
    with pytest.raises(ValueError, match="unknown-adapter does not exist"):
        model.delete_adapter("unknown-adapter")
    with pytest.raises(ValueError, match="unknown-adapter not found"):
        model.set_adapter("unknown-adapter")


@each_tuner
def test_merging_is_not_supported(case: AdapterCase):
    model = case.make_model()
    before = case.run(model)
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.merge_and_unload):
        with pytest.raises(ValueError, match=r"is nonlinear\. Keep the adapter attached, or .*unload\(\)"):
            merge()
    with pytest.raises(
        ValueError,
        match=r"add_weighted_adapter is not supported: the branches are nonlinear.*set_adapter\(\[\.\.\.\]\)",
    ):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    assert torch.equal(case.run(model), before)


@each_tuner
def test_invalid_adapter_names_of_a_mixed_batch(case: AdapterCase):
    model = case.make_model()
    with pytest.raises(ValueError, match=r'adapter_names: expected default or "__base__", got unknown-adapter\.'):
        case.run(model, adapter_names=["default", "unknown-adapter", "__base__"])
    with pytest.raises(ValueError, match="adapter_names: expected 3 names, one per sample, got 2"):
        case.run(model, adapter_names=["default", "__base__"])
    model.train()
    with pytest.raises(
        ValueError, match=r"adapter_names: expected a model in eval mode, got one in training mode; call `\.eval\(\)`"
    ):
        case.run(model, adapter_names=["default"] * 3)


def test_unknown_backbone_types_and_input_modules():
    with pytest.raises(
        ValueError, match=r"expected a known backbone type \(clip_text_model.*got 'custom'; set target_modules"
    ):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), TextAdapterConfig())
    with pytest.raises(
        ValueError, match=r"expected a known backbone type \(dinov2.*got 'clip_text_model'; .*input_module"
    ):
        get_peft_model(CLIP_TEXT.make_backbone(), DINOV2.make_config())
    with pytest.raises(ValueError, match=r"got 'encoder\.layer\.0\.no_such', which does not exist; set input_module"):
        get_peft_model(Dinov2Model(Dinov2Config(**SMALL)), DINOV2.make_config(input_module="no_such"))
    late = CLIP_TEXT.make_config(input_module="mlp.fc2")
    with pytest.raises(ValueError, match="expected the residual stream, got none; set input_module"):
        CLIP_TEXT.run(get_peft_model(CLIP_TEXT.make_backbone(), late))


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}
