"""Adapters with a type of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation, TextAdapterConfig
from detris_peft.adapters import DenseAlignerModel, TextAdapterModel, register
from tests.helpers.adapter_cases import DINOV2, randomize
from tests.helpers.tiny_models import image_encoder, inputs, text_encoder, tiny_config

SIZES = {"dim": 16, "layers_to_transform": [0, 2], "cross_attention_dim": 8, "cross_attention_heads": 2}


@dataclass
class DoubledAlignerConfig(DenseAlignerConfig):
    """Dense Aligner with another default, and a field of its own."""

    scale: float = 0.4
    note: str = "none"


class DoubledAlignerModel(DenseAlignerModel):
    """The tuner for it."""

    config_cls = DoubledAlignerConfig


@dataclass
class UnregisteredConfig(TextAdapterConfig):
    """A config without a type of its own."""

    note: str = "none"


register("doubled_aligner", DoubledAlignerConfig, DoubledAlignerModel)


def test_an_adapter_of_a_registered_subclass_is_loaded_as_itself(tmp_path: Path):
    config = DoubledAlignerConfig(**SIZES, text_dim=24, note="ours")
    assert config.peft_type == PeftType["DOUBLED_ALIGNER"]
    model = get_peft_model(DINOV2.make_backbone(), config)
    randomize(model)
    model.eval().save_pretrained(tmp_path)
    assert type(model.base_model) is DoubledAlignerModel
    loaded = PeftModel.from_pretrained(DINOV2.make_backbone(), tmp_path).eval()
    assert type(loaded.base_model) is DoubledAlignerModel
    torch.testing.assert_close(DINOV2.run(loaded), DINOV2.run(model), atol=1e-5, rtol=1e-5)
    read = PeftConfig.from_pretrained(tmp_path)
    assert type(read) is DoubledAlignerConfig
    assert (read.scale, read.note) == (0.4, "ours")
    loaded.load_adapter(tmp_path, "second")
    assert type(loaded.peft_config["second"]) is DoubledAlignerConfig


def test_a_checkpoint_keeps_the_subclass(tmp_path: Path):
    torch.manual_seed(0)
    backbones = []
    for backbone in (image_encoder(), text_encoder()):
        folder = tmp_path / type(backbone).__name__
        backbone.save_pretrained(folder)
        backbones.append(type(backbone).from_pretrained(folder))
    config = tiny_config(vision_adapter=DoubledAlignerConfig(**SIZES, text_dim=48, note="ours"))
    model = DetrisForReferringSegmentation.from_backbones(*backbones, config).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "checkpoint")
    assert type(loaded.config.vision_adapter) is DoubledAlignerConfig
    assert loaded.config.vision_adapter.note == "ours"
    assert type(loaded.vision_model.base_model) is DoubledAlignerModel
    batch = {key: value for key, value in inputs().items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_an_unregistered_subclass_is_refused_before_it_is_trained():
    """Otherwise its file would be loaded as the plain class."""
    message = r"UnregisteredConfig.*TEXT_ADAPTER.*detris_peft\.adapters\.register"
    with pytest.raises(ValueError, match=message):
        get_peft_model(text_encoder(), UnregisteredConfig(dim=16, layers_to_transform=[1]))
    with pytest.raises(ValueError, match=message):
        DetrisConfig(text_adapter=UnregisteredConfig())


def test_names_of_types():
    register("doubled_aligner", DoubledAlignerConfig, DoubledAlignerModel)  # again
    with pytest.raises(ValueError, match="name='lora': this type belongs to LoraConfig; choose another name"):
        register("lora", DoubledAlignerConfig, DoubledAlignerModel)
    with pytest.raises(ValueError, match="name='text_adapter': this type belongs to TextAdapterConfig"):
        register("text_adapter", UnregisteredConfig, TextAdapterModel)
    for name in ("Wide", "wide aligner", "wide_", ""):
        with pytest.raises(ValueError, match=f"name='{name}': expected lower-case letters"):
            register(name, DoubledAlignerConfig, DoubledAlignerModel)
    with pytest.raises(ValueError, match="peft_type='TEXT_ADAPTER': expected DENSE_ALIGNER"):
        DenseAlignerConfig(peft_type="TEXT_ADAPTER")
