"""Configuration of DETRIS: two frozen backbones, their adapters, and the head."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from peft import PeftConfig, PeftType
from transformers import AutoConfig, PreTrainedConfig

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from .encoders import architecture, sentence_dim, text_encoder

_ADAPTERS = {"vision_adapter": DenseAlignerConfig, "text_adapter": TextAdapterConfig}


class DetrisConfig(PreTrainedConfig):
    """Configuration of a [`DetrisForReferringSegmentation`]; the defaults are DETRIS-B's.

    Args:
        vision_config: configuration of the image encoder (an object or its dict); DINOv2-B/14 with 4 registers if left
            out.
        text_config: configuration of the text encoder; CLIP ViT-B/16's if left out.
        vision_adapter: the Dense Aligners, or None for none (Table 3 of the paper); left out, DETRIS-B's.
        text_adapter: the text adapters, or None for none; left out, DETRIS-B's.
        extract_layers: blocks (counted from 0) whose output feeds the neck, besides the last block's; by default
            those at one and two thirds of the depth (4 and 8 of 12, 8 and 16 of 24).
        hidden_dim: width d of the head, a multiple of 4 and of the heads.
        neck_heads: attention heads of the neck.
        decoder_layers: layers of the decoder.
        decoder_heads: attention heads of the decoder.
        decoder_ffn_dim: width of the decoder's feed-forward layers.
        dropout: dropout of the decoder while training.
        image_size: side s of the images in pixels, a multiple of the patch.
        max_text_length: tokens L a sentence is cut to, start and end included.
        mask_threshold: probability above which a pixel belongs to the mask.
        pad_token_id: token that fills short sentences; the decoder does not look at it. By default the text encoder's
            (0 for CLIP, as the released weights were trained: Hugging Face's CLIP tokenizer pads with the end token).
        position_interpolation: how DINOv2's position table is resampled to the patch grid: `"backbone"`, as the
            Hugging Face model does it (with antialias), or `"official"`, as the released DETRIS weights were trained
            (without, scale (h + 0.1) / n). The tables differ by several percent.
        vision_name_or_path: where the frozen image encoder comes from, a folder or a Hub name; filled in by
            `from_backbones`. A checkpoint names its backbones instead of holding them.
        vision_revision: its branch, tag or commit on the Hub, where the newest is not meant. A loaded model does not
            tell: set it to what you passed to its `from_pretrained`.
        text_name_or_path, text_revision: the same for the text encoder.

    Raises:
        ValueError: two fields contradict each other; the message names them.
    """

    model_type = "detris"
    sub_configs: ClassVar[Any] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict | None = None,
        text_config: PreTrainedConfig | dict | None = None,
        vision_adapter: DenseAlignerConfig | dict | str | None = "default",
        text_adapter: TextAdapterConfig | dict | str | None = "default",
        extract_layers: list[int] | tuple[int, ...] | None = None,
        hidden_dim: int = 512,
        neck_heads: int = 8,
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        decoder_ffn_dim: int = 512,
        dropout: float = 0.1,
        image_size: int = 448,
        max_text_length: int = 17,
        mask_threshold: float = 0.35,  # tuned by the authors on RefCOCO's val, hence not one half
        pad_token_id: int | None = None,
        position_interpolation: str = "backbone",
        vision_name_or_path: str | None = None,
        vision_revision: str | None = None,
        text_name_or_path: str | None = None,
        text_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _backbone_config(vision_config, _DINOV2_B)
        self.text_config = _backbone_config(text_config, _CLIP_B_TEXT)
        self.vision_adapter = _adapter_config("vision_adapter", vision_adapter)
        self.text_adapter = _adapter_config("text_adapter", text_adapter)
        depth = self.vision_config.num_hidden_layers
        self.extract_layers = [depth // 3, 2 * depth // 3] if extract_layers is None else list(extract_layers)
        self.hidden_dim = hidden_dim
        self.neck_heads = neck_heads
        self.decoder_layers = decoder_layers
        self.decoder_heads = decoder_heads
        self.decoder_ffn_dim = decoder_ffn_dim
        self.dropout = dropout
        self.image_size = image_size
        self.max_text_length = max_text_length
        self.mask_threshold = mask_threshold
        self.position_interpolation = position_interpolation
        self.vision_name_or_path = vision_name_or_path
        self.vision_revision = vision_revision
        self.text_name_or_path = text_name_or_path
        self.text_revision = text_revision
        super().__init__(**kwargs)
        self.pad_token_id = text_encoder(self.text_config).pad_token_id if pad_token_id is None else pad_token_id
        self._check()

    def with_backbones(self, vision_config: PreTrainedConfig, text_config: PreTrainedConfig) -> DetrisConfig:
        """A copy for other backbones: adapters, head and processing stay; the padding token is the new encoder's."""
        new = copy.deepcopy(self)
        new.vision_config, new.text_config = vision_config, text_config
        if text_config.model_type != self.text_config.model_type:
            new.pad_token_id = text_encoder(text_config).pad_token_id
        new._check()
        return new

    def name_backbone(self, kind: str, name: str | None) -> None:
        """Note where the `"vision"` or `"text"` backbone comes from; the revision of another one does not stay."""
        if name and name != getattr(self, f"{kind}_name_or_path"):
            setattr(self, f"{kind}_name_or_path", name)
            setattr(self, f"{kind}_revision", None)

    @property
    def sentence_dim(self) -> int:
        """Width of `sentence_state`."""
        return sentence_dim(self.text_config)

    def _check(self) -> None:
        depth = self.vision_config.num_hidden_layers
        if any(not 0 <= i < depth for i in self.extract_layers):
            raise ValueError(f"extract_layers={self.extract_layers}: the image encoder has blocks 0 to {depth - 1}.")
        if self.hidden_dim % 4 or self.hidden_dim % self.neck_heads or self.hidden_dim % self.decoder_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} must be a multiple of 4, of neck_heads={self.neck_heads} and of "
                f"decoder_heads={self.decoder_heads}."
            )
        if self.text_config.hidden_size % self.decoder_heads:
            raise ValueError(
                f"The text encoder is {self.text_config.hidden_size} wide, which is not a multiple of "
                f"decoder_heads={self.decoder_heads}."
            )
        if self.vision_adapter is not None and self.vision_adapter.text_dim != self.text_config.hidden_size:
            raise ValueError(
                f"vision_adapter.text_dim={self.vision_adapter.text_dim}, but the text encoder's hidden states are "
                f"{self.text_config.hidden_size} wide: set DenseAlignerConfig(text_dim="
                f"{self.text_config.hidden_size})."
            )
        if self.position_interpolation not in ("backbone", "official"):
            raise ValueError(
                f'position_interpolation={self.position_interpolation!r} is not known: use "backbone" or "official".'
            )
        if self.position_interpolation == "official" and not self.vision_config.model_type.startswith("dinov2"):
            raise ValueError(
                'position_interpolation="official" is about DINOv2\'s table; for '
                f'{self.vision_config.model_type} use "backbone".'
            )

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in _ADAPTERS:
            adapter = getattr(self, name)
            output[name] = None if adapter is None else _plain(adapter)
        return output


# DINOv2-B/14 with 4 registers and CLIP ViT-B/16's text encoder, as on the Hub.
_DINOV2_B = {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14, "num_register_tokens": 4}
_CLIP_B_TEXT = {"model_type": "clip_text_model"}


def _backbone_config(config: PreTrainedConfig | dict | None, default: dict) -> PreTrainedConfig:
    if not isinstance(config, PreTrainedConfig):
        fields = dict(default if config is None else config)
        if "model_type" not in fields:
            raise ValueError("A backbone's config needs its model_type, for example 'dinov2_with_registers'.")
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.architectures = [architecture(config)]
    return config


def _adapter_config(name: str, value: Any) -> Any:
    cls = _ADAPTERS[name]
    if value is None or isinstance(value, cls):
        return value
    if value == "default":
        return cls()
    if isinstance(value, dict):
        return cls(**{k: v for k, v in value.items() if k != "peft_type"})
    got = f"a {type(value).__name__}" if isinstance(value, PeftConfig) else repr(value)
    raise ValueError(f"{name} must be a {cls.__name__} or None, got {got}.")


def _plain(adapter: PeftConfig) -> dict[str, Any]:
    """As JSON can hold it: sets become sorted lists, the peft type its name; what peft fills in itself is left out."""
    fields = {
        k: v for k, v in adapter.to_dict().items() if k not in ("auto_mapping", "peft_version", "inference_mode")
    }
    fields["peft_type"] = PeftType(adapter.peft_type).value
    return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}
