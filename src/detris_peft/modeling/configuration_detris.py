"""Configuration of DETRIS: two frozen backbones, their adapters, and the mask head."""

import copy
import difflib
import os
from dataclasses import field, fields
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from ..defaults import IMAGE_SIZE, MASK_THRESHOLD, MAX_TEXT_LENGTH
from ..errors import one_line
from ..field_types import describe_type, has_type
from .adapter_configs import DEFAULT_TYPES, adapter_config, adapter_dict, scale_adapter
from .bridger_config import BridgerConfig
from .config_limits import check_limits, check_raw_limits
from .encoders import architecture, sentence_dim, text_encoder
from .layers import DEFAULT_DEPTH, scale_layers
from .losses import DEFAULT_LOSS_WEIGHTS, check_loss_weights
from .tokenizer_checks import check_tokenizer

# The default backbones, as on the Hub: DINOv2-B/14 with 4 registers, and the text encoder of CLIP ViT-B/16.
_VISION_DEFAULT = {
    "model_type": "dinov2_with_registers",
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
}
_TEXT_DEFAULT = {"model_type": "clip_text_model"}
_ADAPTERS = tuple(DEFAULT_TYPES)
_DEFAULT_EXTRACT_LAYERS = (4, 8)
# Fields that transformers reads or writes in addition to those that a config declares.
_OTHER_FIELDS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}


class DetrisConfig(PreTrainedConfig):
    """Configuration of a [`DetrisForReferringSegmentation`]; the defaults are those of DETRIS-B.

    All arguments are keyword arguments.

    Args:
        vision_config: configuration of the image encoder, as an object or a dict; default: DINOv2-B/14 with registers.
        text_config: configuration of the text encoder; default: CLIP ViT-B/16.
        vision_adapter: the adapter of the image encoder: a config of peft (default: Dense Aligners), a dict of its
            fields with its `peft_type`, or None to train without it. Types of peft that name no `target_modules` are
            added to the queries and values of all blocks, LN tuning to all LayerNorms.
        text_adapter: the adapter of the text encoder (default: text adapters), or None.
        bridger: a Bridger between the two encoders (ETRIS), or None. It cannot be combined with Dense Aligners.
        train_backbones: train all weights of both encoders, without adapters. Checkpoints then contain the encoders.
        extract_layers: blocks (counted from 0) whose output feeds the neck, in addition to the last block's; default:
            4 and 8 of 12, and those at the same relative depth of other encoders (see `scale_layers`).
        hidden_dim: width d of the head, a multiple of 4 and of the numbers of heads.
        neck_heads: number of attention heads in the neck.
        decoder_layers: number of decoder layers.
        decoder_heads: number of attention heads in the decoder.
        decoder_ffn_dim: width of the decoder's feed-forward layers.
        dropout: dropout probability in the decoder.
        loss_weights: weights of the training losses `bce`, `dice` and `focal` (see `segmentation_loss`); default: the
            paper's, `{"bce": 1.0}`.
        image_size: side s of the model's input in pixels, a multiple of the patch size.
        max_text_length: maximum number of tokens L per expression, start and end token included.
        mask_threshold: probability above which a pixel belongs to the mask.
        pad_token_id: id of the padding token, which the decoder masks. Default: the text encoder's (0 for CLIP, as in
            the training of the released weights; Hugging Face's CLIP tokenizer pads with the end token).
        position_interpolation: how DINOv2's position embeddings are interpolated to the patch grid: `"backbone"`, as
            the Hugging Face model does it (with antialiasing), or `"official"`, as in the training of the released
            DETRIS weights (without antialiasing, scale (h + 0.1) / n). The embeddings differ by several %.
        vision_name_or_path: folder or Hub id of the frozen image encoder; set by `from_backbones`. A checkpoint
            refers to its backbones by name and does not contain them.
        vision_revision: branch, tag or commit of the image encoder on the Hub; default: the newest. A loaded model
            does not know its revision: set this field to the revision that you passed to its `from_pretrained`.
        text_name_or_path: folder or Hub id of the frozen text encoder.
        text_revision: branch, tag or commit of the text encoder on the Hub.

    Raises:
        ValueError: a field has the wrong type, or two fields contradict each other; the message names them.
    """

    model_type = "detris"
    sub_configs: ClassVar[Any] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    # The types are those after `__post_init__`, which converts dicts and replaces None with the default.
    vision_config: Any = None
    text_config: Any = None
    vision_adapter: PeftConfig | None = field(default_factory=DenseAlignerConfig)
    text_adapter: PeftConfig | None = field(default_factory=TextAdapterConfig)
    bridger: BridgerConfig | None = None
    train_backbones: bool = False
    extract_layers: list[int] = None  # type: ignore[assignment]
    hidden_dim: int = 512
    neck_heads: int = 8
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn_dim: int = 512
    dropout: float | int = 0.1
    loss_weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_LOSS_WEIGHTS))
    image_size: int = IMAGE_SIZE
    max_text_length: int = MAX_TEXT_LENGTH
    mask_threshold: float | int = MASK_THRESHOLD
    pad_token_id: int = None  # type: ignore[assignment]
    position_interpolation: Literal["backbone", "official"] = "backbone"
    vision_name_or_path: str | None = None
    vision_revision: str | None = None
    text_name_or_path: str | None = None
    text_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if "tap_layers" in kwargs:  # the name of this field in config files written before 0.1.0
            self.extract_layers = kwargs.pop("tap_layers")
        self._refuse_unknown_fields(kwargs)
        check_raw_limits("config", kwargs)
        self.vision_config = backbone_config("vision_config", self.vision_config)
        self.text_config = backbone_config("text_config", self.text_config)
        for name in _ADAPTERS:
            setattr(self, name, adapter_config(name, getattr(self, name)))
        self.bridger = BridgerConfig.from_value(self.bridger)
        if self.extract_layers is None:
            depth = self.vision_config.num_hidden_layers
            self.extract_layers = scale_layers(_DEFAULT_EXTRACT_LAYERS, depth, DEFAULT_DEPTH)
        elif isinstance(self.extract_layers, tuple):
            self.extract_layers = list(self.extract_layers)
        if self.pad_token_id is None:
            self.pad_token_id = text_encoder(self.text_config).pad_token_id
        if isinstance(self.dtype, str) and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype={self.dtype!r}: expected the name of a torch dtype, such as float32; correct it.")
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def with_backbones(self, vision_config: PreTrainedConfig, text_config: PreTrainedConfig) -> "DetrisConfig":
        """Return a copy for other backbones. Only the padding token changes with the type of the text encoder."""
        new = copy.deepcopy(self)
        new.vision_config, new.text_config = vision_config, text_config
        if text_config.model_type != self.text_config.model_type:
            new.pad_token_id = text_encoder(text_config).pad_token_id
        new.validate_architecture()
        return new

    def scaled_to(self, vision_config: PreTrainedConfig, text_config: PreTrainedConfig) -> "DetrisConfig":
        """Return a copy for backbones of other sizes, from which the values that depend on them are derived.

        `extract_layers` and the blocks with adapters move to the same relative depth (see `scale_layers`). The text
        width and the padding token are those of the text encoder. `image_size` is rounded to a multiple of the patch
        size, and `max_text_length` limited to the positions of the text encoder.
        """
        new = copy.deepcopy(self)
        new.vision_config, new.text_config = vision_config, text_config
        depth, own_depth = vision_config.num_hidden_layers, self.vision_config.num_hidden_layers
        new.extract_layers = scale_layers(self.extract_layers, depth, own_depth)
        text_depths = text_config.num_hidden_layers, self.text_config.num_hidden_layers
        if self.vision_adapter is not None:
            new.vision_adapter = scale_adapter(self.vision_adapter, depth, own_depth, text_config.hidden_size)
        if self.text_adapter is not None:
            new.text_adapter = scale_adapter(self.text_adapter, *text_depths, text_config.hidden_size)
        if self.bridger is not None:
            new.bridger = self.bridger.scaled_to(depth, own_depth, *text_depths)
        patch_size = vision_config.patch_size
        if self.image_size % patch_size:
            new.image_size = patch_size * max(1, round(self.image_size / patch_size))
        new.max_text_length = min(self.max_text_length, max_positions(text_config))
        new.pad_token_id = text_encoder(text_config).pad_token_id
        new.validate_architecture()
        return new

    def name_backbone(self, kind: str, name: str | None) -> None:
        """Set the name of the `"vision"` or `"text"` backbone. A changed name resets the revision."""
        if name and os.path.isdir(name):
            name = os.path.abspath(name)  # valid if the working directory changes
        if name and name != getattr(self, f"{kind}_name_or_path"):
            setattr(self, f"{kind}_name_or_path", name)
            setattr(self, f"{kind}_revision", None)

    @property
    def sentence_dim(self) -> int:
        """Width S of `sentence_state`."""
        return sentence_dim(self.text_config)

    def check_inputs(self) -> None:
        """Raise a ValueError if images of `image_size` or sentences of `max_text_length` do not fit the backbones."""
        patch_size = self.vision_config.patch_size
        if isinstance(patch_size, int) and self.image_size % patch_size:
            raise ValueError(
                f"image_size={self.image_size}: expected a multiple of the patch size, {patch_size}; set it to "
                f"{patch_size * max(1, round(self.image_size / patch_size))}."
            )
        if self.max_text_length > max_positions(self.text_config):
            raise ValueError(
                f"max_text_length={self.max_text_length}: expected at most {max_positions(self.text_config)}, the "
                "positions of the text encoder; lower it."
            )

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise a ValueError if a tokenizer does not belong to the text encoder."""
        check_tokenizer(self.text_config, tokenizer, self.pad_token_id)

    def validate_architecture(self) -> None:
        """Raise a ValueError if a field has the wrong type, or two fields contradict each other."""
        self._validate_types()
        super().validate_architecture()
        for name in ("vision_config", "text_config", *_ADAPTERS):
            check_limits(name, getattr(self, name))
        check_limits("config", self)
        check_loss_weights(self.loss_weights)
        depth, text_dim = self.vision_config.num_hidden_layers, self.text_config.hidden_size
        if any(not 0 <= i < depth for i in self.extract_layers):
            raise ValueError(
                f"extract_layers={self.extract_layers}: expected blocks of the image encoder, 0 to {depth - 1}."
            )
        if self.hidden_dim % 4 or self.hidden_dim % self.neck_heads or self.hidden_dim % self.decoder_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim}: expected a multiple of 4, of neck_heads={self.neck_heads} and of "
                f"decoder_heads={self.decoder_heads}."
            )
        if text_dim % self.decoder_heads:
            raise ValueError(
                f"decoder_heads={self.decoder_heads}: expected a divisor of the text encoder's width, {text_dim}."
            )
        adapter: Any = self.vision_adapter
        if getattr(adapter, "takes_text_states", False) and adapter.text_dim != text_dim:
            raise ValueError(
                f"vision_adapter.text_dim={adapter.text_dim}: expected the width of the text encoder's hidden states, "
                f"{text_dim}; set {type(adapter).__name__}(text_dim={text_dim})."
            )
        if self.bridger is not None:
            self.bridger.check(self.vision_config, self.text_config, self.vision_adapter)
        adapters = [name for name in _ADAPTERS if getattr(self, name) is not None]
        if self.train_backbones and adapters:
            raise ValueError(
                f"train_backbones=True: expected no adapters, got {adapters[0]}; set vision_adapter and text_adapter "
                "to None, or train_backbones=False."
            )
        if not 0 <= self.pad_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id}: expected a token of the text encoder, 0 to "
                f"{self.text_config.vocab_size - 1}; correct it."
            )
        for name, is_valid, expected in (
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("mask_threshold", 0 < self.mask_threshold < 1, "above 0 and below 1"),
        ):
            if not is_valid:
                raise ValueError(f"{name}={getattr(self, name)}: expected a value {expected}; correct it.")
        if self.position_interpolation == "official" and not self.vision_config.model_type.startswith("dinov2"):
            raise ValueError(
                'position_interpolation="official": expected a DINOv2 image encoder, got '
                f'{self.vision_config.model_type}; use "backbone".'
            )

    def _validate_types(self) -> None:
        # transformers' own configs are decorated with `@strict`, whose errors are no ValueErrors.
        own = DetrisConfig.__annotations__
        for name, expected in ((f.name, f.type) for f in fields(self) if f.name in own):
            value = getattr(self, name)
            if not has_type(value, expected):
                raise ValueError(f"{name}={value!r}: expected {describe_type(expected)}; correct it.")

    def _refuse_unknown_fields(self, names: dict[str, Any]) -> None:
        known = {f.name for f in fields(self)}
        for name in names:
            if name not in known | _OTHER_FIELDS and not name.startswith("_"):
                nearest = difflib.get_close_matches(name, known, n=1)
                fix = f"use {nearest[0]}" if nearest else "remove it"
                raise ValueError(f"{name}: expected a field of DetrisConfig, got an unknown name; {fix}.")

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in _ADAPTERS:
            adapter = getattr(self, name)
            output[name] = None if adapter is None else adapter_dict(adapter)
        output["bridger"] = None if self.bridger is None else self.bridger.to_dict()
        return output


def backbone_config(name: str, config: Any) -> PreTrainedConfig:
    """Return the config of a backbone.

    Args:
        name: `"vision_config"` or `"text_config"`.
        config: a config, a dict with its `model_type` and fields, or None for the default backbone's.

    Raises:
        ValueError: the value is something else, or the config of another kind of model.
    """
    if not isinstance(config, PreTrainedConfig):
        default = _VISION_DEFAULT if name == "vision_config" else _TEXT_DEFAULT
        values = dict(default) if config is None else config
        model_type = values.get("model_type") if isinstance(values, dict) else None
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            got = f"model_type={model_type!r:.80}" if isinstance(values, dict) else f"{values!r:.80}"
            raise ValueError(
                f"{name}: expected a config, or a dict with a model_type of transformers, such as "
                f"{default['model_type']!r}, got {got}; correct it."
            )
        check_raw_limits(name, values)
        try:
            config = AutoConfig.for_model(**values)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ValueError(
                f"{name}: expected a config of transformers, got {one_line(error)}; correct it."
            ) from None
    # A copy: transformers sets the attention implementation of nested configs, which a loaded encoder would then use.
    config = copy.deepcopy(config)
    config.architectures = [architecture(config)]
    check_kind(name, config)
    return config


def check_kind(name: str, config: PreTrainedConfig) -> None:
    """Raise a ValueError if the config of a backbone is of another kind of model.

    Args:
        name: what the config belongs to; it starts with `"vision"` or `"text"`.
        config: the config.
    """
    is_image = name.startswith("vision")
    for required in ("num_hidden_layers", "hidden_size", "patch_size" if is_image else "vocab_size"):
        if not hasattr(config, required):
            raise ValueError(
                f"{name}: expected {'an image' if is_image else 'a text'} encoder, got {config.model_type!r}, whose "
                f"config has no {required}; choose another model."
            )


def max_positions(text_config: Any) -> int:
    """Return the maximum number of tokens of a text encoder."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is None:  # relative positions
        return text_config.vocab_size
    # RoBERTa counts positions from the padding id on.
    return positions - text_config.pad_token_id - 1 if "roberta" in text_config.model_type else positions
