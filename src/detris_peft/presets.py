"""The published configurations by name, and `tiny`, small enough for two CPU cores."""

from __future__ import annotations

from collections.abc import Callable

from .adapters import DenseAlignerConfig, TextAdapterConfig
from .modeling import DetrisConfig

_BASE = {"vision_name_or_path": "facebook/dinov2-with-registers-base"}
_LARGE = {"vision_name_or_path": "facebook/dinov2-with-registers-large"}
_CLIP = {"text_name_or_path": "openai/clip-vit-base-patch16"}
_DINOV2_L = {
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


_PRESETS: dict[str, Callable[[], DetrisConfig]] = {
    "detris-b": detris_b,
    "detris-b-half": detris_b_half,
    "detris-l": detris_l,
    "detris-l-mixed": detris_l_mixed,
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
