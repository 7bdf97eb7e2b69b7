"""Optimizer: Adam over the trainable parameters, as in the paper."""

from __future__ import annotations

import torch
from torch import nn

from ..adapters.config import AdapterConfig
from ..modeling import DetrisConfig

_BACKBONES = ("vision_model.", "text_model.")
_FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps")


def trains_unused_weights(config: DetrisConfig) -> bool:
    """Return whether weights may be trained that the forward pass does not use.

    Encoders may have a pooler or a mask token, and an adapter of peft may be in such a module.
    """
    adapters = [adapter for adapter in (config.vision_adapter, config.text_adapter) if adapter is not None]
    return config.train_backbones or not all(isinstance(adapter, AdapterConfig) for adapter in adapters)


def create_optimizer(
    model: nn.Module, learning_rate: float, backbone_learning_rate: float | None = None, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return Adam over the parameters of a model that require a gradient.

    Args:
        model: a [`DetrisForReferringSegmentation`].
        learning_rate: learning rate of the head and the Bridger, and of everything else by default.
        backbone_learning_rate: learning rate of the weights within both encoders: adapters, or the encoders themselves
            if they are trained.
        fused: update all weights in one operation, where PyTorch has it for their device.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "model: expected parameters that require a gradient, got none; call requires_grad_(True) on the modules "
            "to train."
        )
    fused = fused and all(p.device.type in _FUSED_DEVICES for _, p in trained)
    if backbone_learning_rate is None:
        return torch.optim.Adam([p for _, p in trained], lr=learning_rate, fused=fused)
    in_backbone = [p for name, p in trained if name.startswith(_BACKBONES)]
    others = [p for name, p in trained if not name.startswith(_BACKBONES)]
    groups = [{"params": others, "lr": learning_rate}, {"params": in_backbone, "lr": backbone_learning_rate}]
    return torch.optim.Adam([group for group in groups if group["params"]], fused=fused)
