"""The bottleneck adapter: Houlsby et al. (https://arxiv.org/abs/1902.00751), section 2.1.

Symbols: B batch, N tokens, C width of the encoder, D bottleneck width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..sequential import SequentialAdapterLayer
from .config import BottleneckAdapterConfig

STD = 1e-2  # Houlsby et al., section 3.6: the results hardly depend on it up to this value


class BottleneckAdapter(nn.Module):
    """Bottleneck branch: down-projection, activation, up-projection; (B, N, C) → (B, N, C), without the residual."""

    def __init__(self, width: int, config: BottleneckAdapterConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.dim)
        self.activation = ACT2FN[config.activation]
        self.up = nn.Linear(config.dim, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=STD, a=-2 * STD, b=2 * STD)
            nn.init.zeros_(linear.bias)
        if config.init_weights == "identity":
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up(self.activation(self.down(hidden_states)))


class BottleneckAdapterLayer(SequentialAdapterLayer):
    """A module of a block followed by bottleneck adapters."""

    adapter_layer_names = ("bottleneck_adapter_branches",)

    def make_branch(self, config: BottleneckAdapterConfig) -> nn.Module:
        return BottleneckAdapter(self.width, config)
