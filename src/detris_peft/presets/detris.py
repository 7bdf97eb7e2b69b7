"""DETRIS itself, in the published sizes (https://arxiv.org/abs/2501.08580)."""

from __future__ import annotations

from typing import Any

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from ..modeling import DetrisConfig
from .recipes import DICE_LOSS_WEIGHTS

BASE: dict[str, Any] = {
    "vision_name_or_path": "facebook/dinov2-with-registers-base",
    "text_name_or_path": "openai/clip-vit-base-patch16",
}
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
    **BASE,
    "vision_name_or_path": "facebook/dinov2-with-registers-large",
    "vision_config": _DINOV2_L,
    "extract_layers": (8, 16),
}


def detris_b() -> DetrisConfig:
    """Return the config of DETRIS-B: 2.72 M adapter parameters."""
    return DetrisConfig(**BASE)


def detris_b_plus() -> DetrisConfig:
    """Return the config of DETRIS-B with two changes that are not in the paper and add no parameters.

    The output of the adapters is zero at first, and the Dice loss is added with weight 0.5; see docs/experiments.md.
    """
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(init_weights="identity"),
        text_adapter=TextAdapterConfig(init_weights="identity"),
        loss_weights=dict(DICE_LOSS_WEIGHTS),
        **BASE,
    )


def detris_b_half() -> DetrisConfig:
    """Return the config of DETRIS-B with three adapters of each kind, 1.36 M parameters (Table 2).

    The paper does not say which layers.
    """
    layers = [3, 7, 11]
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(layers_to_transform=layers),
        text_adapter=TextAdapterConfig(layers_to_transform=layers),
        **BASE,
    )


def detris_l() -> DetrisConfig:
    """Return the config of DETRIS-L: 3.11 M adapter parameters."""
    aligner = DenseAlignerConfig(layers_to_transform=[2, 6, 10, 14, 18, 22])
    return DetrisConfig(vision_adapter=aligner, **_LARGE)


def detris_l_mixed() -> DetrisConfig:
    """Return the config of DETRIS-L as released for the mixed dataset.

    Adapters of dimension 384 in every layer except the first, 33.3 M parameters.
    """
    return DetrisConfig(
        vision_adapter=DenseAlignerConfig(dim=384, layers_to_transform=[*range(1, 24)]),
        text_adapter=TextAdapterConfig(dim=384, layers_to_transform=[*range(1, 12)]),
        **_LARGE,
    )
