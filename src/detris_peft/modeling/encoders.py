"""How each backbone is called and how its output is read, per `model_type` of transformers.

To add a backbone, add a row here and one in `adapters/block_layouts.py`, which lists where the MLP of a block is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TextEncoder:
    """How a text encoder is called and read.

    Attributes:
        pad_token_id: id of the padding token.
        masks_padding: whether the encoder was trained with an attention mask over padding.
        pools: whether its pooled output is the sentence state; otherwise the first token's state is used.
    """

    pad_token_id: int
    masks_padding: bool
    pools: bool


TEXT_ENCODERS = {
    "clip_text_model": TextEncoder(pad_token_id=0, masks_padding=False, pools=True),
    "siglip_text_model": TextEncoder(pad_token_id=1, masks_padding=False, pools=True),
    # Not pooled: many checkpoints do not contain the pooler (masked language modeling does not train it), so loading
    # would initialize it randomly.
    "bert": TextEncoder(pad_token_id=0, masks_padding=True, pools=False),
    "xlm-roberta": TextEncoder(pad_token_id=1, masks_padding=True, pools=False),
}


def text_encoder(config: PreTrainedConfig) -> TextEncoder:
    """Return the settings of a text encoder. An unlisted one is treated like BERT, with its own padding token."""
    unlisted = TextEncoder(getattr(config, "pad_token_id", None) or 0, masks_padding=True, pools=False)
    return TEXT_ENCODERS.get(config.model_type, unlisted)


@dataclass(frozen=True)
class ImageEncoder:
    """How an image encoder is called.

    Attributes:
        call: keyword arguments that let it accept image sizes other than the one it was trained on.
    """

    call: dict[str, Any] = field(default_factory=dict)


IMAGE_ENCODERS = {
    name: ImageEncoder({"interpolate_pos_encoding": True})
    for name in ("vit", "clip_vision_model", "siglip_vision_model")
}

# Backbone classes of model types for which AutoModel has none or several; the default comes first.
_CLASSES = {
    "clip_text_model": ("CLIPTextModelWithProjection", "CLIPTextModel"),
    "siglip_text_model": ("SiglipTextModel",),
}
# Config field with the width of the sentence state, where that is not `hidden_size`.
_SENTENCE_DIM = {"CLIPTextModelWithProjection": "projection_dim", "SiglipTextModel": "projection_size"}


def architecture(config: PreTrainedConfig) -> str:
    """Return the name of the transformers class that implements a backbone's config.

    For the config of a task model (`ViTForImageClassification`), this is the encoder without the task head.

    Raises:
        ValueError: transformers has no model class for this config.
    """
    given = (config.architectures or [""])[0]
    classes = _CLASSES.get(config.model_type)
    if classes is None and type(config) in MODEL_MAPPING:
        mapped: Any = MODEL_MAPPING[type(config)]
        classes = (mapped.__name__,)
    if classes is not None:
        return given if given in classes else classes[0]
    if given and hasattr(transformers, given):
        return given
    raise ValueError(
        f"expected a config with a transformers model class, got {type(config).__name__} with architectures="
        f"{config.architectures}; set `architectures`, or pass loaded backbones to from_backbones."
    )


def backbone_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the transformers class that implements a backbone's config."""
    return getattr(transformers, architecture(config))


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Create a backbone with random weights."""
    return backbone_class(config)(config)


def sentence_dim(config: PreTrainedConfig) -> int:
    """Return the width S of a text encoder's sentence state."""
    return getattr(config, _SENTENCE_DIM.get(architecture(config), "hidden_size"))


def sentence_state(config: PreTrainedConfig, outputs: Any) -> torch.Tensor:
    """Return the sentence state (B, S): the projected or pooled output, or the first token's state."""
    if not text_encoder(config).pools:
        return outputs.last_hidden_state[:, 0]
    return outputs.text_embeds if "text_embeds" in outputs else outputs.pooler_output


def use_official_position_table(vision_model: PreTrainedModel) -> None:
    """Make a DINOv2 model interpolate its position embeddings as in the training of the released DETRIS weights."""
    embeddings: Any = vision_model.embeddings
    embeddings.interpolate_pos_encoding = MethodType(_official_positions, embeddings)


def _official_positions(self: Any, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Interpolate the position embeddings: (B, 1 + h·w, C) → (1, 1 + h·w, C) for height × width pixels.

    Bicubic without antialiasing, with scale factor (h + 0.1) / n for an n×n table. DINOv2's code adds 0.1 to avoid a
    rounding error; it shifts every position slightly.
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
