"""Presets: the published model configurations with their training recipes, and the CPU-sized `tiny`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .adapters import DenseAlignerConfig, TextAdapterConfig
from .modeling import DetrisConfig, build_backbone
from .modeling.backbone_folders import recover_backbone, write_backbone
from .modeling.backbones import read_backbone_config
from .modeling.encoders import first_difference

_BASE: dict[str, Any] = {"vision_name_or_path": "facebook/dinov2-with-registers-base"}
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
_LARGE: dict[str, Any] = {
    "vision_name_or_path": "facebook/dinov2-with-registers-large",
    "vision_config": _DINOV2_L,
    "extract_layers": (8, 16),
}


def detris_b() -> DetrisConfig:
    """Return the config of DETRIS-B: 2.72 M adapter parameters."""
    return DetrisConfig(**_BASE, **_CLIP)


def detris_b_half() -> DetrisConfig:
    """Return the config of DETRIS-B with three adapters of each kind, 1.36 M parameters (Table 2).

    The paper does not say which layers.
    """
    layers = [3, 7, 11]
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(layers_to_transform=layers),
        text_adapter=TextAdapterConfig(layers_to_transform=layers),
        **_BASE,
        **_CLIP,
    )


def detris_l() -> DetrisConfig:
    """Return the config of DETRIS-L: 3.11 M adapter parameters."""
    aligner = DenseAlignerConfig(layers_to_transform=[2, 6, 10, 14, 18, 22])
    return DetrisConfig(vision_adapter=aligner, **_LARGE, **_CLIP)


def detris_l_mixed() -> DetrisConfig:
    """Return the config of DETRIS-L as released for the mixed dataset.

    Adapters of dimension 384 in every layer except the first, 33.3 M parameters.
    """
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(dim=384, layers_to_transform=[*range(1, 24)]),
        text_adapter=TextAdapterConfig(dim=384, layers_to_transform=[*range(1, 12)]),
        **_LARGE,
        **_CLIP,
    )


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


class _Preset(NamedTuple):
    config: Callable[[], DetrisConfig]
    recipe: Mapping[str, Any]


# Recipes hold only what differs from the defaults of `TrainingArguments`. The paper's recipe for DETRIS-L doubles
# batch size and learning rate.
_B_RECIPE = {"mixed_precision": "bf16"}
_L_RECIPE = {**_B_RECIPE, "batch_size": 64, "learning_rate": 2e-4}
_TINY_RECIPE = {
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "milestones": [3],
    "max_grad_norm": 1.0,
    "num_workers": 0,
}
_PRESETS: dict[str, _Preset] = {
    "detris-b": _Preset(detris_b, _B_RECIPE),
    "detris-b-half": _Preset(detris_b_half, _B_RECIPE),
    "detris-l": _Preset(detris_l, _L_RECIPE),
    "detris-l-mixed": _Preset(detris_l_mixed, _L_RECIPE),
    "tiny": _Preset(tiny, _TINY_RECIPE),
}


def list_presets() -> tuple[str, ...]:
    """Return the names of the presets."""
    return tuple(_PRESETS)


def get(name: str) -> DetrisConfig:
    """Return a new config of a preset.

    Raises:
        ValueError: no preset has this name; the message lists the presets.
    """
    return _find(name).config()


def recipe(name: str) -> dict[str, Any]:
    """Return the training recipe of a preset: values of `TrainingArguments` that differ from its defaults.

    Raises:
        ValueError: no preset has this name; the message lists the presets.
    """
    return copy.deepcopy(dict(_find(name).recipe))


def _find(name: str) -> _Preset:
    if name not in list_presets():
        raise ValueError(f"preset: expected one of {', '.join(_PRESETS)}, got {name!r}.")
    return _PRESETS[name]
