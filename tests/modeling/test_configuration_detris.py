"""DetrisConfig: defaults, saving and loading, validation."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from peft import PeftType
from transformers import AutoConfig, CLIPTextConfig, PreTrainedConfig, ViTConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, TextAdapterConfig, presets
from detris_peft.adapters import TextAdapterModel, register
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


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, [0]), (3, [0, 1]), (4, [1, 2]), (12, [4, 8]), (24, [9, 17]), (40, [16, 29])]
)
def test_default_extract_layers_are_at_the_relative_depth_of_4_and_8_of_12(depth, expected):
    vision = {"model_type": "dinov2_with_registers", "num_hidden_layers": depth}
    assert DetrisConfig(vision_config=vision).extract_layers == expected
    assert DetrisConfig(vision_config=vision, extract_layers=[0]).extract_layers == [0]


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
            "vision_adapter: expected an adapter for image encoders, got a TextAdapterConfig",
        ),
        (
            {"text_adapter": DenseAlignerConfig()},
            "text_adapter: expected an adapter for text encoders, got a DenseAlignerConfig",
        ),
        ({"text_adapter": "lora"}, "text_adapter: expected a config of peft, .*, or None, got 'lora'"),
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


# --- Backbones of other sizes ----------------------------------------------------------------------------------------


def test_a_config_scales_to_backbones_of_other_sizes():
    vision = image_encoder("vit", num_hidden_layers=5, patch_size=9).config
    text = text_encoder("xlm_roberta", num_hidden_layers=7, max_position_embeddings=12).config
    config = DetrisConfig().scaled_to(vision, text)
    assert config.vision_adapter.layers_to_transform == [0, 1, 2, 3, 4]
    assert config.text_adapter.layers_to_transform == [0, 1, 3, 4, 5, 6]
    assert config.extract_layers == [1, 3]
    assert (config.vision_adapter.text_dim, config.pad_token_id) == (48, 1)
    assert (config.image_size, config.max_text_length) == (450, 10)
    assert DetrisConfig().vision_adapter.layers_to_transform == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("name", presets.list_presets())
def test_the_published_layers_stay_with_backbones_of_the_published_depth(name):
    config = presets.get(name)
    scaled = config.scaled_to(config.vision_config, config.text_config)
    for field in ("extract_layers", "vision_adapter", "text_adapter", "image_size", "max_text_length", "pad_token_id"):
        assert getattr(scaled, field) == getattr(config, field)
    expected = {"detris-l": [8, 16], "detris-l-mixed": [8, 16], "tiny": [1, 2]}
    assert config.extract_layers == expected.get(name, [4, 8])


def test_lists_of_layers_that_are_none_or_integers_scale():
    config = tiny_config(vision_adapter={"text_dim": 48, "layers_to_transform": None, "dim": 16})
    config.text_adapter.layers_to_transform = 2
    scaled = config.scaled_to(image_encoder(num_hidden_layers=6).config, text_encoder(num_hidden_layers=6).config)
    assert scaled.vision_adapter.layers_to_transform is None
    assert scaled.text_adapter.layers_to_transform == [5]


# --- Fields of a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dims": 64}, "hidden_dims: expected a field of DetrisConfig, got an unknown name; use hidden_dim"),
        ({"zzz": 1}, "zzz: expected a field of DetrisConfig, got an unknown name; remove it"),
        ({"hidden_dim": True}, "hidden_dim=True: expected int"),
        ({"hidden_dim": None}, "hidden_dim=None: expected int"),
        ({"vision_name_or_path": 3}, "vision_name_or_path=3: expected str or None"),
        ({"decoder_layers": 10_000_000}, "expected decoder_layers from 0 to 1,000, got 10000000"),
        ({"hidden_dim": 2**30, "neck_heads": 4}, "expected hidden_dim from 1 to 16,384"),
        ({"decoder_ffn_dim": 0}, "expected decoder_ffn_dim from 1"),
        ({"image_size": 0}, "expected image_size from 1"),
        ({"pad_token_id": 60}, "pad_token_id=60: expected a token of the text encoder, 0 to 59"),
        ({"dropout": 1.5}, "dropout=1.5: expected a value at least 0 and below 1"),
        ({"mask_threshold": float("nan")}, "mask_threshold=nan: expected a value above 0 and below 1"),
        ({"vision_adapter": {"dims": 32}}, r"vision_adapter.dims: expected a field of DenseAlignerConfig \(dim, "),
        ({"vision_adapter": {"dim": "32"}}, "vision_adapter.dim='32': expected int"),
        ({"text_adapter": {"dim": 3.5}}, "text_adapter.dim=3.5: expected int"),
        ({"text_adapter": {"dim": 16 * 10**6}}, "dim.* from 1 to 16,384"),
        ({"text_adapter": {"peft_type": "PROMPT_TUNING"}}, "expected an adapter that changes modules of the encoder"),
        ({"text_adapter": {"peft_type": "ADALORA"}}, "expected an adapter of another type, got ADALORA"),
        ({"text_adapter": {"peft_type": "LORA", "r": "8"}}, "text_adapter.r='8': expected int"),
        ({"text_adapter": {"peft_type": "LORA", "r": 10**9}}, "text_adapter.r=1000000000: expected at most 16,384"),
        ({"text_adapter": {"peft_type": "LORA", "rank": 8}}, "text_adapter.rank: expected a field of LoraConfig"),
        ({"train_backbones": True}, "train_backbones=True: expected no adapters, got vision_adapter"),
        ({"train_backbones": 1}, "train_backbones=1: expected bool"),
        ({"text_adapter": {"peft_type": "NEW"}}, "expected a type registered with peft, .*, got 'NEW'"),
        ({"vision_config": {"model_type": "vit", "hidden_size": "x"}}, "vision_config: expected a config of transf"),
        ({"vision_config": {"model_type": "bert"}}, "vision_config: expected an image encoder, got 'bert'"),
        ({"vision_config": {"model_type": ["vit"]}}, "vision_config: expected a config, or a dict with a model_type"),
        (
            {"text_config": {"model_type": "none"}},
            "text_config: .* such as 'clip_text_model', got model_type='none'",
        ),
        ({"text_config": {"model_type": "bert", "num_labels": 10**8}}, "num_labels from 0 to 65,536, got 100000000"),
        ({"num_labels": 10**8}, "config: expected num_labels from 0 to 65,536, got 100000000"),
        ({"vision_config": {"model_type": "vit", "num_hidden_layers": 10_000_000}}, "from 1 to 1,000, got 10000000"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_unknown_and_invalid_fields_of_a_config_file_are_refused_in_one_line(changes, message, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as error:
        DetrisConfig.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_subclass_of_an_adapter_config_is_loaded_as_its_own_class(tmp_path):
    @dataclass
    class WideConfig(TextAdapterConfig):
        factor: int = 2

        def __post_init__(self):
            super().__post_init__()
            self.peft_type = PeftType["WIDE_TEXT_ADAPTER"]

    register("wide_text_adapter", WideConfig, TextAdapterModel)
    config = tiny_config(text_adapter=WideConfig(factor=3))
    config.save_pretrained(tmp_path)
    loaded = DetrisConfig.from_pretrained(tmp_path).text_adapter
    assert type(loaded) is WideConfig
    assert loaded.factor == 3


def test_a_subclass_without_a_type_of_its_own_is_refused():
    @dataclass
    class Unregistered(TextAdapterConfig):
        factor: int = 2

    with pytest.raises(ValueError, match="Unregistered: expected a config whose class has a peft type of its own"):
        tiny_config(text_adapter=Unregistered())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 50}, "image_size=50: expected a multiple of the patch size, 8; set it to 48"),
        ({"max_text_length": 99}, "max_text_length=99: expected at most 77"),
    ],
)
def test_inputs_that_do_not_fit_the_backbones_are_refused(changes, message):
    tiny_config().check_inputs()
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes).check_inputs()


def test_the_configs_of_loaded_encoders_are_copied():
    """transformers would set their attention implementation to None, and CLIP's causal mask would be omitted."""
    vision, text = image_encoder(), text_encoder()
    before = [encoder.config.to_dict() for encoder in (vision, text)]
    config = tiny_config(vision_config=vision.config, text_config=text.config)
    assert config.text_config is not text.config
    assert [encoder.config._attn_implementation for encoder in (vision, text)] == ["sdpa", "sdpa"]
    assert [encoder.config.to_dict() for encoder in (vision, text)] == before
