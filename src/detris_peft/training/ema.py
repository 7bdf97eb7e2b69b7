"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class ExponentialMovingAverage:
    """Moving average of the weights: average ← decay · average + (1 - decay) · weight after each optimizer step.

    BatchNorm statistics are not averaged.

    Args:
        model: its parameters that require a gradient are averaged; the average starts as a copy of them.
        decay: weight of the previous average, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after an optimizer step."""
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the model's weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            weight.data, self.average[name] = self.average[name], weight.data

    def save(self, file: Path) -> None:
        """Write the average as safetensors."""
        save_file({name: value.contiguous() for name, value in self.average.items()}, file)

    def load(self, file: Path) -> None:
        """Read an average written by `save`."""
        for name, value in load_file(file).items():
            self.average[name].copy_(value)
