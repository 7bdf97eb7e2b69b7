"""Configuration of DETRIS: two frozen backbones, their adapters, and the mask head."""

import copy
from dataclasses import field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from huggingface_hub.dataclasses import type_validator
from peft import PeftConfig, PeftType
from transformers import AutoConfig, PreTrainedConfig

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from ..defaults import IMAGE_SIZE, MASK_THRESHOLD, MAX_TEXT_LENGTH
from .encoders import architecture, sentence_dim, text_encoder

# The default backbones, as on the Hub: DINOv2-B/14 with 4 registers, and the text encoder of CLIP ViT-B/16.
_VISION_DEFAULT = {
    "model_type": "dinov2_with_registers",
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
}
_TEXT_DEFAULT = {"model_type": "clip_text_model"}
_ADAPTERS = {"vision_adapter": DenseAlignerConfig, "text_adapter": TextAdapterConfig}


class DetrisConfig(PreTrainedConfig):
    """Configuration of a [`DetrisForReferringSegmentation`]; the defaults are those of DETRIS-B.

    All arguments are keyword arguments.

    Args:
        vision_config: configuration of the image encoder, as an object or a dict; default: DINOv2-B/14 with registers.
        text_config: configuration of the text encoder; default: CLIP ViT-B/16.
        vision_adapter: the Dense Aligners, or None to train without them (Table 3 of the paper).
        text_adapter: the text adapters, or None to train without them.
        extract_layers: blocks (counted from 0) whose output feeds the neck, in addition to the last block's; default:
            those at one and two thirds of the depth (4 and 8 of 12, 8 and 16 of 24).
        hidden_dim: width d of the head, a multiple of 4 and of the numbers of heads.
        neck_heads: number of attention heads in the neck.
        decoder_layers: number of decoder layers.
        decoder_heads: number of attention heads in the decoder.
        decoder_ffn_dim: width of the decoder's feed-forward layers.
        dropout: dropout probability in the decoder.
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
    vision_adapter: DenseAlignerConfig | None = field(default_factory=DenseAlignerConfig)
    text_adapter: TextAdapterConfig | None = field(default_factory=TextAdapterConfig)
    extract_layers: list[int] = None  # type: ignore[assignment]
    hidden_dim: int = 512
    neck_heads: int = 8
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn_dim: int = 512
    dropout: float | int = 0.1
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
        self.vision_config = _backbone_config("vision_config", self.vision_config, _VISION_DEFAULT)
        self.text_config = _backbone_config("text_config", self.text_config, _TEXT_DEFAULT)
        for name in _ADAPTERS:
            setattr(self, name, _adapter_config(name, getattr(self, name)))
        if self.extract_layers is None:
            depth = self.vision_config.num_hidden_layers
            self.extract_layers = [depth // 3, 2 * depth // 3]
        elif isinstance(self.extract_layers, tuple):
            self.extract_layers = list(self.extract_layers)
        if self.pad_token_id is None:
            self.pad_token_id = text_encoder(self.text_config).pad_token_id
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

    def name_backbone(self, kind: str, name: str | None) -> None:
        """Set the name of the `"vision"` or `"text"` backbone. A changed name resets the revision."""
        if name and name != getattr(self, f"{kind}_name_or_path"):
            setattr(self, f"{kind}_name_or_path", name)
            setattr(self, f"{kind}_revision", None)

    @property
    def sentence_dim(self) -> int:
        """Width S of `sentence_state`."""
        return sentence_dim(self.text_config)

    def validate_architecture(self) -> None:
        """Raise a ValueError if a field has the wrong type, or two fields contradict each other."""
        self._validate_types()
        super().validate_architecture()
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
        if self.vision_adapter is not None and self.vision_adapter.text_dim != text_dim:
            raise ValueError(
                f"vision_adapter.text_dim={self.vision_adapter.text_dim}: expected the width of the text encoder's "
                f"hidden states, {text_dim}; set DenseAlignerConfig(text_dim={text_dim})."
            )
        if self.position_interpolation == "official" and not self.vision_config.model_type.startswith("dinov2"):
            raise ValueError(
                'position_interpolation="official": expected a DINOv2 image encoder, got '
                f'{self.vision_config.model_type}; use "backbone".'
            )

    def _validate_types(self) -> None:
        # transformers' own configs are decorated with `@strict`, which uses this validator but raises no ValueError.
        own = DetrisConfig.__annotations__
        for name, expected in ((f.name, f.type) for f in fields(self) if f.name in own):
            value = getattr(self, name)
            try:
                type_validator(name, value, expected)
            except (TypeError, ValueError):
                choices = get_args(expected)
                shown = " or ".join(map(repr, choices)) if get_origin(expected) is Literal else _type_name(expected)
                raise ValueError(f"{name}={value!r}: expected {shown}.") from None

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in _ADAPTERS:
            adapter = getattr(self, name)
            output[name] = None if adapter is None else _adapter_dict(adapter)
        return output


def _backbone_config(name: str, config: Any, default: dict) -> PreTrainedConfig:
    if not isinstance(config, PreTrainedConfig):
        values = dict(default) if config is None else config
        if not isinstance(values, dict) or "model_type" not in values:
            raise ValueError(
                f"{name}: expected a config, or a dict with a model_type such as 'dinov2_with_registers', got "
                f"{values}."
            )
        config = AutoConfig.for_model(**values)
    config.architectures = [architecture(config)]
    return config


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _adapter_config(name: str, value: Any) -> PeftConfig | None:
    cls = _ADAPTERS[name]
    if value is None or isinstance(value, cls):
        return value
    if isinstance(value, dict):
        return cls(**{k: v for k, v in value.items() if k != "peft_type"})
    got = f"a {type(value).__name__}" if isinstance(value, PeftConfig) else repr(value)
    raise ValueError(f"{name}: expected a {cls.__name__} or None, got {got}.")


def _adapter_dict(adapter: PeftConfig) -> dict[str, Any]:
    """Return an adapter's fields as JSON values, without those that peft sets itself."""
    values = {
        k: v for k, v in adapter.to_dict().items() if k not in ("auto_mapping", "peft_version", "inference_mode")
    }
    values["peft_type"] = PeftType(adapter.peft_type).value
    return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}
