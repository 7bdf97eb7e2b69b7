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
    """How a text encoder is called.

    Attributes:
        pad_token_id: the token that fills short sentences.
        masks_padding: whether it was trained with a padding mask.
    """

    pad_token_id: int
    masks_padding: bool


TEXT_ENCODERS = {
    "clip_text_model": TextEncoder(pad_token_id=0, masks_padding=False),
    "siglip_text_model": TextEncoder(pad_token_id=1, masks_padding=False),
    "bert": TextEncoder(pad_token_id=0, masks_padding=True),
    "xlm-roberta": TextEncoder(pad_token_id=1, masks_padding=True),
}

# The class to build where the model type leaves a choice, and the config field that gives the sentence's width where
# that is not `hidden_size`.
_ARCHITECTURE = {"clip_text_model": "CLIPTextModelWithProjection"}
SENTENCE_DIM = {"CLIPTextModelWithProjection": "projection_dim", "SiglipTextModel": "projection_size"}


@dataclass(frozen=True)
class ImageEncoder:
    """How an image encoder is called: keywords that let it take pictures of another size than it was trained on."""

    call: dict[str, Any] = field(default_factory=dict)


IMAGE_ENCODERS = {
    name: ImageEncoder({"interpolate_pos_encoding": True})
    for name in ("vit", "clip_vision_model", "siglip_vision_model")
}


def default_architecture(config: PreTrainedConfig) -> str:
    """Name of the transformers class that a bare config stands for."""
    return _ARCHITECTURE.get(config.model_type) or AutoModel._model_mapping[type(config)].__name__


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with random weights."""
    return getattr(transformers, config.architectures[0])(config)


def sentence_state(outputs: Any) -> torch.Tensor:
    """(B, S): the projected sentence where the encoder has a projection, else its pooled state."""
    embeds = outputs.get("text_embeds")
    return outputs.pooler_output if embeds is None else embeds


def use_official_position_table(vision_model: PreTrainedModel) -> None:
    """Let a DINOv2 resample its position table as the released DETRIS weights were trained with."""
    embeddings = vision_model.embeddings
    embeddings.interpolate_pos_encoding = MethodType(_official_positions, embeddings)


def _official_positions(self: nn.Module, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 1 + h·w, C) → (1, 1 + h·w, C) for a picture of height × width pixels.

    Bicubic without antialias, by a scale factor of (h + 0.1) / n for a table of n×n: the 0.1 was put there against
    rounding, and shifts every position a little.
    """
    table: Any = self.position_embeddings
    patch_height, patch_width = self.patch_embeddings.patch_size
    h, w = height // patch_height, width // patch_width
    side = round((table.shape[1] - 1) ** 0.5)
    if h == w == side:
        return table
    grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
