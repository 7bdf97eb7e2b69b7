"""A CPU-sized preset, and random backbones on disk for presets without pretrained ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from ..modeling import DetrisConfig, build_backbone
from ..modeling.backbone_folders import recover_backbone, write_backbone
from ..modeling.backbones import read_backbone_config
from ..modeling.encoders import first_difference


def tiny() -> DetrisConfig:
    """Return a config with tiny backbones for CPU training. They have no weights; see `random_backbones`."""
    return DetrisConfig(
        vision_config={
            "model_type": "dinov2_with_registers",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 8,
            "num_register_tokens": 4,
        },
        text_config={
            "model_type": "clip_text_model",
            "hidden_size": 64,
            "intermediate_size": 256,
            "projection_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": 160,
            "bos_token_id": 158,
            "eos_token_id": 159,
            "pad_token_id": 0,
        },
        vision_adapter=DenseAlignerConfig(
            dim=32, layers_to_transform=[1, 3], text_dim=64, cross_attention_dim=32, cross_attention_heads=4
        ),
        text_adapter=TextAdapterConfig(dim=32, layers_to_transform=[0, 2]),
        hidden_dim=64,
        neck_heads=4,
        decoder_layers=2,
        decoder_heads=4,
        decoder_ffn_dim=128,
        image_size=112,
    )


def random_backbones(config: DetrisConfig, folder: str | os.PathLike, seed: int = 0) -> DetrisConfig:
    """Save a randomly initialized backbone for each one that a config does not name, and name it in the config.

    A checkpoint holds adapters and head only, so random backbones are saved to disk as well. Existing folders are
    reused.

    Args:
        config: changed in place. A backbone is built from `vision_config` or `text_config`; a named one is kept.
        folder: parent of `vision-SEED/` and `text-SEED/`.
        seed: random seed of the weights.

    Returns:
        `config`.

    Raises:
        ValueError: an existing folder holds a backbone of other sizes.
    """
    for kind in ("vision", "text"):
        if getattr(config, f"{kind}_name_or_path"):
            continue
        target = Path(folder) / f"{kind}-{seed}"
        recover_backbone(str(target))
        if target.is_dir():
            _check_same_size(kind, target, getattr(config, f"{kind}_config"))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                write_backbone(build_backbone(getattr(config, f"{kind}_config")), target)
        setattr(config, f"{kind}_name_or_path", str(target))
    return config


def _check_same_size(kind: str, folder: Path, expected: Any) -> None:
    """Raise a ValueError if the backbone in a folder, written by an earlier call, has other sizes than expected."""
    found = read_backbone_config(kind, str(folder), "remove the folder")
    if difference := first_difference(expected, found):
        name, size, other = difference
        raise ValueError(
            f"{folder}: expected a backbone with {name}={size}, got {other}; choose another output folder, or remove "
            "this one."
        )
