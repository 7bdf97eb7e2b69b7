"""Optimizer: Adam over the trainable parameters, as in the paper."""

from __future__ import annotations

import torch
from torch import nn


def create_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return Adam over the parameters of `model` that require a gradient."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
