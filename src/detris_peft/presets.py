"""The published configurations by name, and `tiny`, small enough for two CPU cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .adapters import DenseAlignerConfig, TextAdapterConfig
from .atomic import atomic_update_dir
from .modeling import DetrisConfig, build_backbone

_BASE: dict[str, Any] = {"vision_name_or_path": "facebook/dinov2-with-registers-base"}
_LARGE: dict[str, Any] = {"vision_name_or_path": "facebook/dinov2-with-registers-large"}
_CLIP: dict[str, Any] = {"text_name_or_path": "openai/clip-vit-base-patch16"}
_DINOV2_L: dict[str, Any] = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
}


def detris_b() -> DetrisConfig:
    """DETRIS-B: 2.72 M adapter parameters."""
    return DetrisConfig(**_BASE, **_CLIP)


def detris_b_half() -> DetrisConfig:
    """DETRIS-B with three adapters of each kind, 1.36 M (Table 2). Which layers the paper does not say."""
    layers = [3, 7, 11]
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(layers_to_transform=layers),
        text_adapter=TextAdapterConfig(layers_to_transform=layers),
        **_BASE,
        **_CLIP,
    )


def detris_l() -> DetrisConfig:
    """DETRIS-L: 3.11 M adapter parameters."""
    aligner = DenseAlignerConfig(layers_to_transform=[2, 6, 10, 14, 18, 22])
    return DetrisConfig(vision_config=_DINOV2_L, vision_adapter=aligner, **_LARGE, **_CLIP)


def detris_l_mixed() -> DetrisConfig:
    """DETRIS-L as released for the mixed training set: adapters of 384 in every layer but the first, 33.3 M."""
    return DetrisConfig(
        vision_config=_DINOV2_L,
        vision_adapter=DenseAlignerConfig(dim=384, layers_to_transform=[*range(1, 24)]),
        text_adapter=TextAdapterConfig(dim=384, layers_to_transform=[*range(1, 12)]),
        **_LARGE,
        **_CLIP,
    )


def tiny() -> DetrisConfig:
    """Random backbones small enough to train beside on two CPU cores; see `random_backbones`."""
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
        max_text_length=17,
    )


def random_backbones(config: DetrisConfig, folder: str | os.PathLike, seed: int = 0) -> DetrisConfig:
    """Write random weights for each backbone that a config does not name, and name them in it.

    A checkpoint holds adapters and head only, so even random backbones must lie somewhere. They are written once; what
    is there already is used again.

    Args:
        config: its `vision_config` and `text_config` are built; a backbone that it names already stays.
        folder: gets `vision-SEED/` and `text-SEED/`.
        seed: of the weights.
    """
    for kind in ("vision", "text"):
        if getattr(config, f"{kind}_name_or_path"):
            continue
        target = Path(folder) / f"{kind}-{seed}"
        if not target.is_dir():
            with torch.random.fork_rng(devices=[]), atomic_update_dir(target) as staging:
                torch.manual_seed(seed)
                build_backbone(getattr(config, f"{kind}_config")).save_pretrained(staging)
        setattr(config, f"{kind}_name_or_path", str(target))
    return config


_PRESETS: dict[str, Callable[[], DetrisConfig]] = {
    "detris-b": detris_b,
    "detris-b-half": detris_b_half,
    "detris-l": detris_l,
    "detris-l-mixed": detris_l_mixed,
    "tiny": tiny,
}


def list() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(_PRESETS)


def get(name: str) -> DetrisConfig:
    """A fresh config of a preset.

    Raises:
        ValueError: no preset has this name; the message lists those there are.
    """
    if name not in _PRESETS:
        raise ValueError(f"There is no preset {name!r}; there are {', '.join(_PRESETS)}.")
    return _PRESETS[name]()
