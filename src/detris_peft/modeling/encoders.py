"""What the model asks of its backbones, one row a `model_type` of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TextEncoder:
    """How a text encoder is called and read.

    Attributes:
        pad_token_id: the token that fills short sentences.
        masks_padding: whether it was trained with a padding mask.
        pools: whether its pooled output is the sentence; else the first token's state is.
    """

    pad_token_id: int
    masks_padding: bool
    pools: bool


TEXT_ENCODERS = {
    "clip_text_model": TextEncoder(pad_token_id=0, masks_padding=False, pools=True),
    "siglip_text_model": TextEncoder(pad_token_id=1, masks_padding=False, pools=True),
    # Checkpoints trained on masked words alone lack the pooler's weights: it would be random at every load.
    "bert": TextEncoder(pad_token_id=0, masks_padding=True, pools=False),
    "xlm-roberta": TextEncoder(pad_token_id=1, masks_padding=True, pools=False),
}


def text_encoder(config: PreTrainedConfig) -> TextEncoder:
    """The row of a text encoder; one that is not listed is taken for a BERT with its own padding token."""
    unlisted = TextEncoder(getattr(config, "pad_token_id", None) or 0, masks_padding=True, pools=False)
    return TEXT_ENCODERS.get(config.model_type, unlisted)


@dataclass(frozen=True)
class ImageEncoder:
    """How an image encoder is called: keywords that let it take images of another size than it was trained on."""

    call: dict[str, Any] = field(default_factory=dict)


IMAGE_ENCODERS = {
    name: ImageEncoder({"interpolate_pos_encoding": True})
    for name in ("vit", "clip_vision_model", "siglip_vision_model")
}

# Classes that serve as a backbone where AutoModel does not say or leaves a choice, the default first; and the config
# field that gives the sentence's width where that is not `hidden_size`.
_CLASSES = {
    "clip_text_model": ("CLIPTextModelWithProjection", "CLIPTextModel"),
    "siglip_text_model": ("SiglipTextModel",),
}
_SENTENCE_DIM = {"CLIPTextModelWithProjection": "projection_dim", "SiglipTextModel": "projection_size"}


def architecture(config: PreTrainedConfig) -> str:
    """Name of the transformers class that a backbone's config stands for.

    A config read from a whole model's checkpoint (`ViTForImageClassification`) stands for its plain encoder.
    """
    given = (config.architectures or [""])[0]
    classes = _CLASSES.get(config.model_type)
    if classes is None and type(config) in AutoModel._model_mapping:
        mapped: Any = AutoModel._model_mapping[type(config)]
        classes = (mapped.__name__,)
    if classes is not None:
        return given if given in classes else classes[0]
    if given and hasattr(transformers, given):
        return given
    raise ValueError(
        f"No model class of transformers belongs to {type(config).__name__}: name it in its `architectures`, or pass "
        "loaded backbones to from_backbones."
    )


def backbone_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that a backbone's config stands for."""
    return getattr(transformers, architecture(config))


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with random weights."""
    return backbone_class(config)(config)


def sentence_dim(config: PreTrainedConfig) -> int:
    """Width S of the sentence state of a text encoder."""
    return getattr(config, _SENTENCE_DIM.get(architecture(config), "hidden_size"))


def sentence_state(config: PreTrainedConfig, outputs: Any) -> torch.Tensor:
    """(B, S): the projected sentence where the encoder has a projection, else its pooled or first token's state."""
    if not text_encoder(config).pools:
        return outputs.last_hidden_state[:, 0]
    return outputs.text_embeds if "text_embeds" in outputs else outputs.pooler_output


def use_official_position_table(vision_model: PreTrainedModel) -> None:
    """Let a DINOv2 resample its position table as the released DETRIS weights were trained with."""
    embeddings: Any = vision_model.embeddings
    embeddings.interpolate_pos_encoding = MethodType(_official_positions, embeddings)


def _official_positions(self: Any, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 1 + h·w, C) → (1, 1 + h·w, C) for a image of height × width pixels.

    Bicubic without antialias, by a scale factor of (h + 0.1) / n for a table of n×n: the 0.1 was put there against
    rounding, and shifts every position a little.
    """
    table: nn.Parameter = self.position_embeddings
    patch_height, patch_width = self.patch_embeddings.patch_size
    h, w = height // patch_height, width // patch_width
    side = round((table.shape[1] - 1) ** 0.5)
    if h == w == side:
        return table
    grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
