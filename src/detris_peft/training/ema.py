"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

_UPDATES = "updates"
_WARMED_UP = 1 << 60  # a number of updates after which the decay is constant


class ExponentialMovingAverage:
    """Moving average of the weights: average ← decay · average + (1 - decay) · weight after each optimizer step.

    The decay rises as in diffusers and timm: it is min(`decay`, (1 + n) / (10 + n)) after step n. With a constant
    decay of 0.999, the average of a run of 50 steps would consist of the untrained weights to 95 %.

    BatchNorm statistics are not averaged.

    Args:
        model: its parameters that require a gradient are averaged; the average starts as a copy of them.
        decay: largest weight of the previous average, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, 1 - decay)

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
        """Write the average and the number of updates as safetensors."""
        average = {name: value.contiguous() for name, value in self.average.items()}
        save_file(average, file, metadata={_UPDATES: str(self.updates)})

    def load(self, file: Path) -> None:
        """Read an average written by `save`.

        A file without the number of updates was written with a constant decay, which is then kept.
        """
        with safe_open(file, "pt") as saved:
            updates = (saved.metadata() or {}).get(_UPDATES)
        self.updates = int(updates) if updates is not None else _WARMED_UP
        for name, value in load_file(file).items():
            self.average[name].copy_(value)
