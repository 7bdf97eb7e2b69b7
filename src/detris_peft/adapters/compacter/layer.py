"""Compacter (https://arxiv.org/abs/2106.04647): bottleneck adapters with low-rank sums of Kronecker products.

Symbols: B batch, N tokens, C width of the encoder, D bottleneck width, n number of Kronecker products, k rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from ..sequential import SequentialAdapterLayer
from .config import CompacterConfig

STD = 1e-4  # of the shared matrices: the value of the released implementation


class SharedMatrices(nn.Module):
    """The matrices A_i of all projections of an encoder, (n, n, n).

    A module instead of a parameter of each branch: the branches contain the same module, so that the matrices remain
    shared if a parameter is replaced, as by loading over the meta device.
    """

    def __init__(self, phm_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(phm_dim, phm_dim, phm_dim).normal_(std=STD))

    def forward(self) -> torch.Tensor:
        return self.weight


class LowRankPHM(nn.Module):
    """Low-rank parameterized hypercomplex multiplication: x W + b, with W = Σ A_i ⊗ (s_i t_i).

    The LPHM layer of the paper, with any rank k. `left` contains the s_i (n, in/n, k), `right` the t_i (n, k, out/n).
    """

    def __init__(self, in_features: int, out_features: int, phm_dim: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(phm_dim, in_features // phm_dim, rank))
        self.right = nn.Parameter(torch.empty(phm_dim, rank, out_features // phm_dim))
        self.bias = nn.Parameter(torch.zeros(out_features))
        for factor in (*self.left, *self.right):
            nn.init.xavier_uniform_(factor)

    def forward(self, hidden_states: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        # W is built once per call instead of applying the factors to each token. That would need fewer operations only
        # if the rank is far below D/n, and was not faster even then.
        blocks = torch.einsum("nab,nio->boai", matrices, self.left @ self.right)
        weight = blocks.flatten(2, 3).flatten(0, 1)  # (out, in), the transposed W
        return F.linear(hidden_states, weight, self.bias)


class Compacter(nn.Module):
    """Compacter branch: (B, N, C) → (B, N, C), without the residual connection."""

    def __init__(self, width: int, config: CompacterConfig) -> None:
        super().__init__()
        if width % config.phm_dim:
            raise ValueError(
                f"phm_dim={config.phm_dim}: expected a divisor of {width}, the width of the encoder; change it."
            )
        self.matrices = SharedMatrices(config.phm_dim)
        self.down = LowRankPHM(width, config.dim, config.phm_dim, config.phm_rank)
        self.activation = ACT2FN[config.activation]
        self.up = LowRankPHM(config.dim, width, config.phm_dim, config.phm_rank)
        if config.init_weights == "identity":
            nn.init.zeros_(self.up.right)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The blocks of an encoder may be on different devices.
        matrices = self.matrices().to(hidden_states.device)
        return self.up(self.activation(self.down(hidden_states, matrices)), matrices)


class CompacterLayer(SequentialAdapterLayer):
    """A module of a block followed by Compacter adapters."""

    adapter_layer_names = ("compacter_branches",)

    def make_branch(self, config: CompacterConfig) -> nn.Module:
        return Compacter(self.width, config)
