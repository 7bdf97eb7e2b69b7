"""Bad input: each error says what came, what was needed and what to do."""

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
    Case,
    each_tuner,
    every_image_case,
)


@pytest.mark.parametrize(
    ("config_cls", "fields", "message"),
    [
        (DenseAlignerConfig, {"dim": 100}, "dim=100 must be a positive multiple of 16"),
        (TextAdapterConfig, {"dim": 0}, "dim=0 must be a positive multiple of 16"),
        (TextAdapterConfig, {"dim": 8}, "dim=8 must be a positive multiple of 16"),
        (DenseAlignerConfig, {"layers_to_transform": []}, r"layers_to_transform=\[\] must name at least one block"),
        (TextAdapterConfig, {"layers_to_transform": [-1]}, r"layers_to_transform=\[-1\] .* counted from 0"),
        (TextAdapterConfig, {"layers_to_transform": ["1"]}, "layers_to_transform"),
        (TextAdapterConfig, {"layers_to_transform": [2], "target_modules": r".*mlp"}, "has no effect beside"),
        (TextAdapterConfig, {"target_modules": "all-linear"}, "all-linear.*name the MLP"),
        (DenseAlignerConfig, {"init_weights": "zeros"}, """'zeros' is not known: use "paper" or "identity\""""),
        (
            DenseAlignerConfig,
            {"cross_attention_heads": 7},
            "cross_attention_heads=7 must divide cross_attention_dim=128",
        ),
        (DenseAlignerConfig, {"cross_attention_heads": 0}, "cross_attention_heads=0 must divide"),
        (DenseAlignerConfig, {"cross_attention_dropout": 1.0}, "cross_attention_dropout=1.0 must be"),
        (DenseAlignerConfig, {"text_dim": 0}, "text_dim=0 must be"),
    ],
)
def test_config_fields(config_cls: type, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_cls(**fields)


@each_tuner
def test_layers_beyond_the_depth(case: Case):
    backbone = case.backbone()
    with pytest.raises(ValueError, match=r"names block 3, 7, but \w+ has blocks 0 to 2: blocks count from 0"):
        get_peft_model(backbone, case.config(layers_to_transform=[0, 3, 7]))
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    assert set(backbone.state_dict()) == set(case.backbone().state_dict())


@every_image_case
def test_text_states(case: Case):
    model = case.adapted()
    images = case.inputs()
    good = images.pop("text_states")
    for bad, message in [
        (None, r"text_states is missing: pass the text encoder's last hidden states \(B, L, T\).*disable_adapter"),
        (good[:2], r"text_states has shape \(2, 5, 24\), needed is \(3, L, T\): one sentence for each of the 3"),
        (good[:, 0], r"text_states has shape \(3, 24\), needed is \(3, L, T\)"),
        (good[..., :20], r"text_states is 20 wide, .* made for 24: set DenseAlignerConfig\(text_dim=20\) or"),
        (good.to("meta"), "text_states is on meta, the image encoder on cpu: move one"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**images, text_states=bad)
    with pytest.raises(ValueError, match="text_states is missing"):
        model(**images)
    with torch.no_grad(), model.disable_adapter():
        model(**images)  # the plain backbone needs no text
    model(**images, text_states=good)


@every_image_case
def test_sides_that_are_no_multiples_of_the_patch(case: Case):
    inputs = case.inputs()
    inputs["pixel_values"] = torch.randn(3, 3, 28, 40)
    with pytest.raises(ValueError, match="28 high and 40 wide: both sides must be multiples of the patch, 14 and 14"):
        case.adapted()(**inputs)


def test_a_grid_that_cannot_be_read():
    encoder = DINOV2.adapted().get_base_model().encoder
    with pytest.raises(ValueError, match=r"patch_grid is None for 7 tokens: .*or pass patch_grid=\(h, w\)"):
        encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM))
    with pytest.raises(ValueError, match=r"patch_grid is \(3, 4\) for 7 tokens"):
        encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM), patch_grid=(3, 4))
    encoder(torch.randn(2, 7, 32), text_states=torch.randn(2, 5, TEXT_DIM), patch_grid=(2, 3))


@each_tuner
def test_an_adapter_of_another_width_or_backbone(case: Case, tmp_path: Path):
    model = case.adapted()
    model.save_pretrained(tmp_path)
    wide = case.backbone_config()
    wide.hidden_size = 64
    with pytest.raises(ValueError, match=r"do not fit this backbone: .* is \(16, 32\) in the file, \(16, 64\) here"):
        PeftModel.from_pretrained(case.model_cls(wide), tmp_path)
    shallow = case.backbone_config()
    shallow.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"names block 2, but .* has blocks 0 to 1"):
        PeftModel.from_pretrained(case.model_cls(shallow), tmp_path)
    other = (IMAGE_CASES if case.takes_images else TEXT_CASES)[3]
    with pytest.raises(ValueError, match=r"do not belong|input_module|not found"):
        PeftModel.from_pretrained(other.backbone(), tmp_path)


@each_tuner
def test_keys_left_over_or_missing(case: Case, tmp_path: Path):
    model = case.adapted()
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    lost = next(key for key in whole if "running_var" in key)
    save_file({key: value for key, value in whole.items() if key != lost}, file)
    for low_cpu_mem_usage in (False, True):
        with pytest.raises(ValueError, match=r"do not belong to adapter 'default' .*1 missing .*running_var"):
            PeftModel.from_pretrained(case.backbone(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    state = get_peft_model_state_dict(model)
    state[lost.replace("running_var", "gone")] = torch.ones(1)
    with pytest.raises(ValueError, match=r"0 missing .*1 unexpected .*gone"):
        set_peft_model_state_dict(model, state)


@each_tuner
def test_names_that_are_taken(case: Case):
    model = case.adapted()
    with pytest.raises(ValueError, match="'default' already exists"):
        model.add_adapter("default", case.config())
    with pytest.raises(ValueError, match=r"already carries an adapter named 'default' .*adapter_name="):
        get_peft_model(model.get_base_model(), case.config())
    with pytest.raises(ValueError, match=r"cannot be named 'down', as a module here is"):
        model.add_adapter("down", case.config())
    with pytest.raises(ValueError, match=r"cannot be named 'encoder', as a module here is"):
        model.add_adapter("encoder", case.config())
    assert set(model.peft_config) == {"default"}
    with pytest.raises(ValueError, match="unknown-adapter does not exist"):
        model.delete_adapter("unknown-adapter")
    with pytest.raises(ValueError, match="nobody not found"):
        model.set_adapter("nobody")


@each_tuner
def test_merging_is_refused_with_the_reason(case: Case):
    model = case.adapted()
    before = case.states(model)
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.merge_and_unload):
        with pytest.raises(ValueError, match=r"not a linear map\. Keep it beside the backbone, or .*unload\(\)"):
            merge()
    with pytest.raises(ValueError, match="not linear in their weights"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    assert torch.equal(case.states(model), before)


@each_tuner
def test_adapter_names_of_a_batch(case: Case):
    model = case.adapted()
    with pytest.raises(ValueError, match=r"adapter_names has nobody; this model has default and \"__base__\""):
        case.states(model, adapter_names=["default", "nobody", "__base__"])
    with pytest.raises(ValueError, match="adapter_names has 2 entries for a batch of 3: give one a row"):
        case.states(model, adapter_names=["default", "__base__"])
    model.train()
    with pytest.raises(ValueError, match=r"adapter_names is for inference: call `.eval\(\)`"):
        case.states(model, adapter_names=["default"] * 3)


def test_backbones_that_are_not_known():
    with pytest.raises(ValueError, match=r"does not know the backbone type 'custom'.*clip_text_model.*target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), TextAdapterConfig())
    with pytest.raises(ValueError, match=r"does not know the backbone type 'clip_text_model' .*dinov2.*input_module"):
        get_peft_model(CLIP_TEXT.backbone(), DINOV2.config())
    with pytest.raises(ValueError, match=r"no module 'encoder.layer.0.no_such' .*set input_module"):
        get_peft_model(Dinov2Model(Dinov2Config(**SMALL)), DINOV2.config(input_module="no_such"))
    late = CLIP_TEXT.config(input_module="mlp.fc2")
    with pytest.raises(ValueError, match="got no residual stream: set input_module"):
        CLIP_TEXT.states(get_peft_model(CLIP_TEXT.backbone(), late))


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}
