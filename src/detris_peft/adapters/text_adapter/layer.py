"""The text adapter: DETRIS (https://arxiv.org/abs/2501.08580), section 3.3, equation 4.

Symbols: B batch, L text length, T width of the text encoder, D bottleneck width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..dmoc import DenseMixtureOfConvolutions
from ..parallel import ParallelAdapterLayer
from .config import TextAdapterConfig


class TextAdapter(nn.Module):
    """Text adapter branch: the residual stream before the MLP's norm (B, L, T) → (B, L, T), unscaled.

    Unlike the Dense Aligner, it keeps PyTorch's default initialization.
    """

    def __init__(self, width: int, config: TextAdapterConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.dim)
        self.dmoc = DenseMixtureOfConvolutions(config.dim, spatial_dims=1)
        self.up = nn.Linear(config.dim, width)
        if config.init_weights == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        z = self.down(residual).relu()  # (B, L, D)
        # The start token skips the convolutions, which are not causal and include padding.
        words = z[:, 1:]
        if words.shape[1]:  # convolutions do not accept a sentence of the start token only
            words = self.dmoc(words.transpose(1, 2)).transpose(1, 2)  # (B, L-1, D)
        return self.up(torch.cat([z[:, :1], words], dim=1) + z)


class TextAdapterLayer(ParallelAdapterLayer):
    """The MLP of a text block with parallel text adapters."""

    adapter_layer_names = ("text_adapter_branches",)

    @staticmethod
    def extract_input(args: tuple, kwargs: dict) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    def make_branch(self, config: TextAdapterConfig) -> nn.Module:
        return TextAdapter(self.width, config)

    def check_input(self, hidden_states: torch.Tensor, second_input: Any) -> tuple:
        if second_input is None:
            raise ValueError(
                "expected the residual stream, got none; set input_module in TextAdapterConfig to a module of the "
                "block that runs before the target module."
            )
        # The branch does not use the target's own input, which comes after the norm.
        return (second_input,)
