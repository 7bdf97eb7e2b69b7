"""How each backbone is called and how its output is read, per `model_type` of transformers.

To add a backbone, add a row here and one in `adapters/block_layouts.py`, which lists where the MLP of a block is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from peft import PeftModel
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TextEncoder:
    """How a text encoder is called and read.

    Attributes:
        pad_token_id: id of the padding token.
        masks_padding: whether the encoder was trained with an attention mask over padding.
        sentence_from: what the sentence state is: the (projected) state of the end-of-text token, the pooled output,
            or the state of the first token.
        final_norm: name of the norm after the last block, which gives `last_hidden_state`; None if there is none.
    """

    pad_token_id: int
    masks_padding: bool
    sentence_from: Literal["end token", "pooler", "first token"]
    final_norm: str | None = None


TEXT_ENCODERS = {
    "clip_text_model": TextEncoder(
        pad_token_id=0, masks_padding=False, sentence_from="end token", final_norm="final_layer_norm"
    ),
    "siglip_text_model": TextEncoder(
        pad_token_id=1, masks_padding=False, sentence_from="pooler", final_norm="final_layer_norm"
    ),
    # Not pooled: many checkpoints do not contain the pooler (masked language modeling does not train it), so loading
    # would initialize it randomly.
    "bert": TextEncoder(pad_token_id=0, masks_padding=True, sentence_from="first token"),
    "xlm-roberta": TextEncoder(pad_token_id=1, masks_padding=True, sentence_from="first token"),
}


def text_encoder(config: PreTrainedConfig) -> TextEncoder:
    """Return the settings of a text encoder. An unlisted one is treated like BERT, with its own padding token."""
    unlisted = TextEncoder(getattr(config, "pad_token_id", None) or 0, masks_padding=True, sentence_from="first token")
    return TEXT_ENCODERS.get(config.model_type, unlisted)


@dataclass(frozen=True)
class ImageEncoder:
    """How an image encoder is called.

    Attributes:
        call: keyword arguments that let it accept image sizes other than the one it was trained on.
        final_norm: name of the norm after the last block, which gives `last_hidden_state`; None if there is none.
    """

    call: dict[str, Any] = field(default_factory=dict)
    final_norm: str | None = None


_INTERPOLATE = {"interpolate_pos_encoding": True}
IMAGE_ENCODERS = {
    "dinov2": ImageEncoder(final_norm="layernorm"),
    "dinov2_with_registers": ImageEncoder(final_norm="layernorm"),
    "dinov3_vit": ImageEncoder(final_norm="norm"),
    "vit": ImageEncoder(_INTERPOLATE, final_norm="layernorm"),
    "clip_vision_model": ImageEncoder(_INTERPOLATE),  # its post_layernorm is for the class token only
    "siglip_vision_model": ImageEncoder(_INTERPOLATE, final_norm="post_layernorm"),
}


def final_norm(config: PreTrainedConfig) -> str | None:
    """Return the name of the norm after the last block of a listed encoder, or None if it has none."""
    encoders: dict[str, Any] = {**IMAGE_ENCODERS, **TEXT_ENCODERS}
    return encoders[config.model_type].final_norm


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


def first_difference(expected: PreTrainedConfig, got: PreTrainedConfig) -> tuple[str, Any, Any] | None:
    """Compare the type and the sizes of two encoders.

    Returns:
        The first field that differs, its expected value and the other value; None if the encoders are alike.
    """
    for name in ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
        values = getattr(expected, name, None), getattr(got, name, None)
        if values[0] != values[1]:
            return name, *values
    return None


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Create a backbone with random weights."""
    return backbone_class(config)(config)


def sentence_dim(config: PreTrainedConfig) -> int:
    """Return the width S of a text encoder's sentence state."""
    return getattr(config, _SENTENCE_DIM.get(architecture(config), "hidden_size"))


def sentence_state(text_model: Any, config: PreTrainedConfig, outputs: Any, ends: torch.Tensor) -> torch.Tensor:
    """Return the sentence state (B, S).

    Args:
        text_model: the text encoder, with or without adapters.
        config: its config.
        outputs: its outputs.
        ends: (B,), positions of the end tokens; see `end_positions`.
    """
    sentence_from = text_encoder(config).sentence_from
    plain: Any = text_model.get_base_model() if isinstance(text_model, PeftModel) else text_model
    if sentence_from == "pooler":
        return plain.head(outputs.last_hidden_state[:, -1])
    if sentence_from == "first token":
        return outputs.last_hidden_state[:, 0]
    # transformers looks for `config.eos_token_id`, or for the highest id if that is 2, which may be an added token.
    rows = torch.arange(ends.shape[0], device=ends.device)  # not len(): torch.export would make it a constant
    state = outputs.last_hidden_state[rows, ends]
    return plain.text_projection(state) if architecture(config) == "CLIPTextModelWithProjection" else state


def end_positions(config: PreTrainedConfig, input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Return the position (B,) of the end token in tokens (B, L): the last token before the padding."""
    end: Any = config.eos_token_id
    if pad_token_id != end:  # otherwise the first padding token is the end token
        last = (input_ids != pad_token_id).cumsum(-1).argmax(-1, keepdim=True)
        end = input_ids.gather(-1, last)
    # The first one: Hugging Face's CLIP tokenizer pads with the end token.
    return (input_ids == end).int().argmax(-1)
