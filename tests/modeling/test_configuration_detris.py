"""DetrisConfig: defaults, saving and loading, validation."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, CLIPTextConfig, PreTrainedConfig, ViTConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, TextAdapterConfig
from tests.helpers.reference import FIXTURES
from tests.helpers.tiny_models import image_encoder, text_encoder, tiny_config


def test_defaults_are_detris_b():
    config = DetrisConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.model_type, vision.hidden_size, vision.num_hidden_layers) == ("dinov2_with_registers", 768, 12)
    assert (vision.patch_size, vision.num_register_tokens, vision.image_size) == (14, 4, 518)
    assert (text.model_type, text.hidden_size, text.num_hidden_layers) == ("clip_text_model", 512, 12)
    assert text.architectures == ["CLIPTextModelWithProjection"]
    assert isinstance(config.vision_adapter, DenseAlignerConfig)
    assert isinstance(config.text_adapter, TextAdapterConfig)
    assert (config.extract_layers, config.hidden_dim, config.sentence_dim) == ([4, 8], 512, 512)
    assert (config.image_size, config.max_text_length, config.mask_threshold) == (448, 17, 0.35)
    assert (config.pad_token_id, config.position_interpolation) == (0, "backbone")


def test_default_extract_layers_are_at_thirds_of_the_depth():
    large = {"model_type": "dinov2_with_registers", "num_hidden_layers": 24}
    assert DetrisConfig(vision_config=large).extract_layers == [8, 16]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_adapter": None},
        {"text_adapter": None},
        {"vision_adapter": None, "text_adapter": None},
        {"position_interpolation": "official", "extract_layers": [0, 1], "mask_threshold": 0.5, "pad_token_id": 3},
        {"vision_name_or_path": "user/dino", "vision_revision": "abc", "text_name_or_path": "user/clip"},
        {"text_adapter": TextAdapterConfig(dim=32, target_modules=["mlp"], init_weights="identity")},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_round_trip(changes, tmp_path):
    """Saved configs load with `DetrisConfig` and with `AutoConfig`."""
    config = tiny_config(**changes)
    config.save_pretrained(tmp_path)
    for read in (DetrisConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(read) is DetrisConfig
        assert type(read.vision_config) is type(config.vision_config)
        assert type(read.text_config) is type(config.text_config)
        first, second = config.to_dict(), read.to_dict()
        for volatile in ("transformers_version", "_name_or_path"):
            first.pop(volatile, None)
            second.pop(volatile, None)
        assert first == second
        for name in changes:
            assert getattr(read, name) == getattr(config, name)


def test_adapters_from_dicts():
    config = tiny_config(vision_adapter={"dim": 32, "text_dim": 48}, text_adapter={"peft_type": "TEXT_ADAPTER"})
    assert config.vision_adapter == DenseAlignerConfig(dim=32, text_dim=48)
    assert config.text_adapter == TextAdapterConfig()


def test_config_of_a_task_model_gives_its_encoder():
    """`AutoConfig` of a classifier's checkpoint names the classifier; the encoder is built."""
    config = tiny_config(vision_config=ViTConfig(num_hidden_layers=3, architectures=["ViTForImageClassification"]))
    assert config.vision_config.architectures == ["ViTModel"]
    plain = CLIPTextConfig(hidden_size=48, num_attention_heads=4, architectures=["CLIPTextModel"])
    assert tiny_config(text_config=plain).text_config.architectures == ["CLIPTextModel"]


@pytest.mark.parametrize(
    ("kind", "pad", "sentence_dim"),
    [("clip_projected", 0, 24), ("clip", 0, 48), ("siglip", 1, 24), ("bert", 0, 48), ("xlm_roberta", 1, 48)],
)
def test_padding_and_sentence_width_come_from_the_text_encoder(kind, pad, sentence_dim):
    text = text_encoder(kind)
    text.config.architectures = [type(text).__name__]
    config = tiny_config().with_backbones(image_encoder().config, text.config)
    assert (config.pad_token_id, config.sentence_dim) == (pad, sentence_dim)


def test_explicit_padding_is_kept_for_the_same_encoder():
    config = tiny_config(pad_token_id=5)
    assert config.with_backbones(image_encoder().config, text_encoder().config).pad_token_id == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract_layers": [1, 3]}, r"extract_layers=\[1, 3\]: expected blocks of the image encoder, 0 to 2"),
        ({"extract_layers": [-1]}, r"extract_layers=\[-1\]"),
        ({"hidden_dim": 42}, "hidden_dim=42: expected a multiple of 4, of neck_heads=4"),
        ({"neck_heads": 3}, "neck_heads=3"),
        ({"decoder_heads": 16}, "decoder_heads=16"),
        (
            {"text_config": CLIPTextConfig(hidden_size=50, num_attention_heads=2)},
            "decoder_heads=4: expected a divisor of the text encoder's width, 50",
        ),
        (
            {"vision_adapter": DenseAlignerConfig()},
            r"text_dim=512: expected .*, 48; set DenseAlignerConfig\(text_dim=48",
        ),
        (
            {"vision_adapter": TextAdapterConfig()},
            "vision_adapter: expected a DenseAlignerConfig or None, got a TextAd",
        ),
        (
            {"text_adapter": DenseAlignerConfig()},
            "text_adapter: expected a TextAdapterConfig or None, got a DenseAlign",
        ),
        ({"text_adapter": "lora"}, "text_adapter: expected a TextAdapterConfig or None, got 'lora'"),
        ({"position_interpolation": "linear"}, "position_interpolation='linear': expected 'backbone' or 'official'"),
        (
            {"vision_config": ViTConfig(), "position_interpolation": "official"},
            "expected a DINOv2 image encoder, got vit",
        ),
        ({"hidden_dim": "64"}, "hidden_dim='64': expected int"),
        ({"extract_layers": ["a"]}, r"extract_layers=\['a'\]: expected list\[int\]"),
        ({"dropout": [0.1]}, r"dropout=\[0.1\]: expected float"),
        ({"text_config": [1]}, r"text_config: expected a config, or a dict with a model_type .*, got \[1\]"),
        ({"vision_config": {"hidden_size": 32}}, "vision_config: expected a config, or a dict with a model_type"),
        (
            {"vision_config": PreTrainedConfig()},
            "expected a config with a transformers model class, got PreTrainedConfig",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_invalid_fields_raise_a_one_line_error(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_config_files_written_before_0_1_0_load():
    """`extract_layers` was called `tap_layers`."""
    assert tiny_config(extract_layers=None, tap_layers=[0, 2]).extract_layers == [0, 2]
    config = DetrisConfig.from_pretrained(FIXTURES / "checkpoint_0.1.0.dev0")
    assert (config.extract_layers, config.hidden_dim) == ([0, 1], 32)
    assert "tap_layers" not in config.to_dict()


def test_instances_do_not_share_mutable_defaults():
    first, second = DetrisConfig(), DetrisConfig()
    first.extract_layers.append(11)
    first.vision_adapter.layers_to_transform.append(0)
    assert second.extract_layers == [4, 8]
    assert second.vision_adapter.layers_to_transform == [1, 3, 5, 7, 9, 11]


def test_fields_set_later_are_checked_with_the_backbones():
    config = tiny_config()
    config.position_interpolation = "offical"
    with pytest.raises(ValueError, match="position_interpolation='offical': expected 'backbone' or 'official'"):
        config.with_backbones(image_encoder().config, text_encoder().config)
