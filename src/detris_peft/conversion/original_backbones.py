"""The backbones' original files, as their authors publish them, into Hugging Face models."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
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

from ..modeling import DetrisConfig
from .key_mapping import backbone_layout, misfit
from .safe_loading import first_line, kind_of, read_dict


def load_original_dinov2(path: str | os.PathLike) -> Dinov2WithRegistersModel:
    """Read DINOv2 with registers as its authors publish it (`dinov2_vit*14_reg4_pretrain.pth`, S, B or L).

    Width, depth, patch, registers and table are read off the tensors; a head is 64 wide, as in every DINOv2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file (the message says which), or a key is missing, left over or misshapen.
    """
    needed = "DINOv2 with registers as published, dinov2_vit*14_reg4_pretrain.pth"
    weights = _original(path, needed, "DINO")
    if "blocks.0.mlp.w12.weight" in weights:
        raise ValueError(f"{path} is a DINOv2-g, with a gated MLP: needed is {needed} of the sizes S, B or L.")
    try:
        width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
        config = Dinov2WithRegistersConfig(
            hidden_size=width,
            num_hidden_layers=_depth(weights, "blocks."),
            num_attention_heads=width // 64,
            mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] // width,
            image_size=patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
            patch_size=patch,
            num_register_tokens=weights["register_tokens"].shape[1],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not {needed}: it does not tell its size ({first_line(error)}).") from None
    return _filled(
        Dinov2WithRegistersModel, config, DetrisConfig(vision_config=copy.deepcopy(config)), "vision", weights, path
    )


def load_original_clip_text(path: str | os.PathLike) -> CLIPTextModelWithProjection:
    """Read the text encoder of a CLIP as OpenAI publishes it, in float32 and eval mode.

    OpenAI's archives are TorchScript, which `torch.jit.load` would execute: here its tensors are read and its code is
    left alone. A plain `state_dict` of the same keys is read as well. Sizes are read off the
    tensors; a head is 64 wide, as in every CLIP. The image encoder in the file is passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file (the message says which), or a key is missing or misshapen.
    """
    needed = "a CLIP as OpenAI publishes it"
    weights = _original(path, needed, "CLIP")
    try:
        vocabulary, width = weights["token_embedding.weight"].shape
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=_depth(weights, "transformer.resblocks."),
            num_attention_heads=width // 64,
            max_position_embeddings=weights["positional_embedding"].shape[0],
            vocab_size=vocabulary,
            projection_dim=weights["text_projection"].shape[1],
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not {needed}: it does not tell its size ({first_line(error)}).") from None
    ours = ("transformer.", "token_embedding.", "positional_embedding", "text_projection", "ln_final.", "logit_scale")
    weights = {key: value for key, value in weights.items() if key.startswith(ours)}
    detris = DetrisConfig(text_config=copy.deepcopy(config), vision_adapter=None, decoder_heads=1, hidden_dim=width)
    return _filled(CLIPTextModelWithProjection, config, detris, "text", weights, path)


def _original(path: str | os.PathLike, needed: str, kind: str) -> dict[str, torch.Tensor]:
    """A backbone's `state_dict`; whatever else the file is, it is named for."""
    content, wanted = read_dict(Path(path), needed, scripted=kind == "CLIP"), f"needed is {needed}"
    found = kind_of(content)
    if found and kind not in found:
        raise ValueError(f"{path} is {found}: {wanted}.")
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} is not a dict of tensors: {wanted}.")
    if not found:
        raise ValueError(f"{path} holds other weights, such as {next(iter(content))}: {wanted}.")
    return content


def _depth(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix))


def _filled(
    cls: Any, config: Any, detris: DetrisConfig, kind: str, weights: dict[str, torch.Tensor], path: Any
) -> Any:
    """A backbone made of original weights, which become its own."""
    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls(config)
    state, layout = model.state_dict(), {row.official: row for row in backbone_layout(detris, kind)}
    wrong = misfit(weights, layout, state)
    if wrong:
        raise ValueError(f"{path} is not the {kind} backbone it seems to be: {wrong}.")
    ours = {}
    for key, row in layout.items():
        ours |= {name: part.float().contiguous() for name, part in row.split(weights.pop(key)).items()}
    model.load_state_dict(ours, assign=True)
    return model.eval()
