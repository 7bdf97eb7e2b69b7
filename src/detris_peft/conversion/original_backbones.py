"""Convert original DINOv2 and OpenAI CLIP files to Hugging Face models."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from ..errors import one_line
from ..modeling import DetrisConfig
from ..safe_loading import printable, read_checkpoint
from .key_mapping import backbone_layout, detect_kind, mismatch
from .weights import check_weights

_HEAD_DIM = 64  # the same in every published DINOv2 and CLIP; not stored in the files
# First parts of the keys of CLIP's text encoder.
_CLIP_TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "text_projection",
    "ln_final.",
    "logit_scale",
)


def load_original_dinov2(path: str | os.PathLike) -> Dinov2WithRegistersModel:
    """Load DINOv2 with registers (S, B or L) from its original file, `dinov2_vit*14_reg4_pretrain.pth`.

    Width, depth, patch size, number of registers and position embeddings are inferred from the tensors.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has other content, which the message names, or a key is missing, unexpected or of a wrong
            shape.
    """
    expected = "DINOv2 with registers as published, dinov2_vit*14_reg4_pretrain.pth"
    weights = _read_backbone(path, expected, "DINO")
    if "blocks.0.mlp.w12.weight" in weights:
        raise ValueError(f"{path}: expected {expected}, got DINOv2-g, whose MLP is gated; pass size S, B or L.")
    try:
        width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
        image_size = patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5)
        config = Dinov2WithRegistersConfig(
            hidden_size=width,
            num_hidden_layers=_depth(weights, "blocks."),
            num_attention_heads=_heads(width),
            mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] // width,
            image_size=image_size,
            patch_size=patch,
            num_register_tokens=weights["register_tokens"].shape[1],
        )
        detris = DetrisConfig(vision_config=copy.deepcopy(config), image_size=image_size)
    except (LookupError, ArithmeticError, ValueError) as error:
        raise _unknown_size(path, expected, error) from None
    return _build_model(Dinov2WithRegistersModel, config, detris, "vision", weights, path)


def load_original_clip_text(path: str | os.PathLike) -> CLIPTextModelWithProjection:
    """Load the text encoder from OpenAI's original CLIP file, in float32 and eval mode.

    OpenAI's files are TorchScript archives, whose code `torch.jit.load` would execute. Here only their tensors are
    read. A plain `state_dict` with the same keys is supported as well. Sizes are inferred from the tensors. The image
    encoder in the file is ignored.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has other content, which the message names, or a key is missing or of a wrong shape.
    """
    expected = "an original CLIP file of OpenAI"
    weights = _read_backbone(path, expected, "CLIP", _CLIP_TEXT)
    try:
        vocabulary, width = weights["token_embedding.weight"].shape
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=_depth(weights, "transformer.resblocks."),
            num_attention_heads=_heads(width),
            max_position_embeddings=weights["positional_embedding"].shape[0],
            vocab_size=vocabulary,
            projection_dim=weights["text_projection"].shape[1],
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        )
        detris = DetrisConfig(
            text_config=copy.deepcopy(config),
            vision_adapter=None,
            decoder_heads=1,
            hidden_dim=width,
            max_text_length=config.max_position_embeddings,
        )
    except (LookupError, ArithmeticError, ValueError) as error:
        raise _unknown_size(path, expected, error) from None
    return _build_model(CLIPTextModelWithProjection, config, detris, "text", weights, path)


def _read_backbone(
    path: str | os.PathLike, expected: str, kind: str, prefixes: tuple[str, ...] = ("",)
) -> dict[str, torch.Tensor]:
    """Read a backbone's `state_dict`: the keys with these prefixes. For other files, the error names the content."""
    content = read_checkpoint(path, expected, scripted=kind == "CLIP")
    detected = detect_kind(content)
    if detected and kind not in detected:
        got = detected
    elif not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        got = "a dict of other values than tensors"
    elif not detected:
        got = f"other weights, such as {printable(str(next(iter(content))))}"
    else:
        weights = {str(key): value for key, value in content.items() if str(key).startswith(prefixes)}
        check_weights(weights, path)
        return weights
    raise ValueError(f"{path}: expected {expected}, got {got}; pass another file.")


def _unknown_size(path: str | os.PathLike, expected: str, error: Exception) -> ValueError:
    reason = one_line(error, first_line=True)
    return ValueError(
        f"{path}: expected {expected}, got weights whose size cannot be inferred ({reason}); pass another file."
    )


def _depth(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return the number of layers, which must be numbered from 0 without gaps."""
    layers = {int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix)}
    if layers != {*range(len(layers))}:
        raise ValueError(f"{len(layers)} layers whose largest number is {max(layers)}")
    return len(layers)


def _heads(width: int) -> int:
    if width < _HEAD_DIM or width % _HEAD_DIM:
        raise ValueError(f"width {width}, expected a multiple of {_HEAD_DIM}, the size of an attention head")
    return width // _HEAD_DIM


def _build_model(
    cls: Any, config: Any, detris: DetrisConfig, kind: str, weights: dict[str, torch.Tensor], path: Any
) -> Any:
    """Return a model with the original weights, without copying them where possible."""
    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls(config)
    state, layout = model.state_dict(), {mapping.official: mapping for mapping in backbone_layout(detris, kind)}
    problem = mismatch(weights, layout, state)
    if problem:
        raise ValueError(f"{path}: looks like a {kind} backbone but does not match: {problem}; pass another file.")
    converted = {}
    for key, mapping in layout.items():
        converted |= {name: part.float().contiguous() for name, part in mapping.split(weights.pop(key)).items()}
    model.load_state_dict(converted, assign=True)
    return model.eval()
