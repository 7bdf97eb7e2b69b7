"""Pretrained backbones: the config decides the class, and every weight must be loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)

from detris_peft.modeling.backbones import load_pretrained_backbone, read_backbone_config
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, text_encoder

FIX = "pass another one"


def edit_weights(folder, edit):
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("kind", IMAGE)
def test_the_class_of_an_image_encoder_is_that_of_its_config(kind, tmp_path):
    saved = image_encoder(kind)
    saved.save_pretrained(tmp_path)
    loaded = load_pretrained_backbone("vision", str(tmp_path), FIX)
    assert type(loaded) is type(saved)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())


@pytest.mark.parametrize("kind", TEXT)
def test_the_class_of_a_text_encoder_is_that_of_its_config(kind, tmp_path):
    saved = text_encoder(kind)
    saved.save_pretrained(tmp_path)
    assert type(load_pretrained_backbone("text", str(tmp_path), FIX)) is type(saved)


def test_one_encoder_of_a_model_with_both(tmp_path):
    """CLIP's own repositories hold both encoders, and the width of the projection in the outer config."""
    text, vision = TEXT["clip"][2], IMAGE["clip"][2]
    text = {key: value for key, value in text.items() if key != "projection_dim"}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(tmp_path)
    loaded = load_pretrained_backbone("text", str(tmp_path), FIX)
    assert type(loaded) is CLIPTextModelWithProjection
    assert loaded.text_projection.out_features == 24
    assert type(load_pretrained_backbone("vision", str(tmp_path), FIX)) is CLIPVisionModel


@pytest.mark.parametrize(
    ("cls", "kind", "source"),
    [
        (BertForMaskedLM, "text", TEXT["bert"]),
        (ViTForImageClassification, "vision", IMAGE["vit"]),
        (ViTForMaskedImageModeling, "vision", IMAGE["vit"]),  # its encoder has a mask token
    ],
)
def test_the_encoder_of_a_task_model_loads_without_its_head_and_pooler(cls, kind, source, tmp_path):
    cls(source[1](**source[2])).save_pretrained(tmp_path)
    assert type(load_pretrained_backbone(kind, str(tmp_path), FIX)) is source[0]


def test_a_mask_token_may_be_missing(tmp_path):
    saved = image_encoder("dinov2")
    saved.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("embeddings.mask_token"))
    assert isinstance(load_pretrained_backbone("vision", str(tmp_path), FIX), type(saved))


@pytest.mark.parametrize("kind", ["clip_projected", "clip", "bert", "siglip"])
def test_a_missing_weight_is_an_error(kind, tmp_path):
    text_encoder(kind).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop(min(weights)))
    with pytest.raises(
        ValueError, match=r"text backbone .* is missing 1 weights, such as .*embedding.*; pass another"
    ):
        load_pretrained_backbone("text", str(tmp_path), FIX)


@pytest.mark.parametrize("kind", ["clip_projected", "clip", "bert", "siglip"])
def test_an_unexpected_weight_is_an_error(kind, tmp_path):
    """As if config.json had fewer layers than the weights."""
    text_encoder(kind).save_pretrained(tmp_path)
    edit_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"text backbone .* has unexpected weights: .*layers?\.2\..*; pass another"):
        load_pretrained_backbone("text", str(tmp_path), FIX)


def test_weights_of_other_shapes_are_an_error_in_one_line(tmp_path):
    image_encoder("vit").save_pretrained(tmp_path)
    edit_config(tmp_path, intermediate_size=96)
    with pytest.raises(
        OSError, match=r"cannot be loaded \(the shapes of its weights differ .*; pass another"
    ) as caught:
        load_pretrained_backbone("vision", str(tmp_path), FIX)
    assert "\n" not in str(caught.value)


def test_another_class_than_that_of_the_config_is_refused(tmp_path):
    text_encoder("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a CLIPTextModelWithProjection, got a model of type bert"):
        load_pretrained_backbone("text", str(tmp_path), FIX, "CLIPTextModelWithProjection")


@pytest.mark.parametrize(("kind", "build"), [("vision", text_encoder), ("text", image_encoder)])
def test_an_encoder_of_the_other_kind_is_refused(kind, build, tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected an (image|text) encoder, got a model of type .*; pass another one"
    ):
        read_backbone_config(kind, str(tmp_path), FIX)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10_000_000}, "expected num_hidden_layers from 1 to 1,000, got 10000000"),
        ({"hidden_size": 2**40}, "expected hidden_size from 1 to 65,536"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"num_hidden_layers": 1e7}, "num_hidden_layers"),
        ({"patch_size": 0}, "expected patch_size from 1"),
        ({"model_type": "unheard_of"}, "expected a model_type of transformers, got 'unheard_of'"),
        ({"model_type": None}, "expected a model_type of transformers, got None"),
    ],
)
def test_invalid_configs_are_refused_in_one_line(changes, message, tmp_path):
    image_encoder().config.save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load_pretrained_backbone("vision", str(tmp_path), FIX)
    assert "\n" not in str(caught.value)


def test_folders_without_a_config_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a vision encoder, got a folder without config\.json"):
        read_backbone_config("vision", str(tmp_path), FIX)
    with pytest.raises(FileNotFoundError, match="nowhere: expected the folder of the vision backbone, found no such"):
        read_backbone_config("vision", str(tmp_path / "nowhere"), FIX)
