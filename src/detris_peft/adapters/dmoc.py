"""Dense mixture of convolutions (D-MoC), used by both adapters.

DETRIS (https://arxiv.org/abs/2501.08580), section 3.3, equation 2. Symbols: B batch, D bottleneck width.
"""

from __future__ import annotations

import torch
from torch import nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def conv_block(in_channels: int, out_channels: int, kernel_size: int, spatial_dims: int) -> nn.Sequential:
    """Return convolution (with bias) → BatchNorm → ReLU. It keeps the spatial size; `spatial_dims` is 1 or 2."""
    return nn.Sequential(
        _CONV[spatial_dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        # The released weights were trained with this epsilon, not with PyTorch's 1e-5.
        _BATCH_NORM[spatial_dims](out_channels, eps=1e-3),
        # Not in place: some backends need BatchNorm's output in its backward pass.
        nn.ReLU(),
    )


class DenseMixtureOfConvolutions(nn.Module):
    """Three branches with kernels 1, 3 and 5. Each gets the input and the outputs of the branches before it.

    The branches have D/2, D/4 and D/4 output channels; the wider kernels work on D/16 channels. The residual
    connection (equation 1) is in the adapter, which also applies it to the tokens that skip the convolutions.

    Args:
        dim: width D, a multiple of 16.
        spatial_dims: 2 for a grid (B, D, h, w), 1 for a sequence (B, D, L).
    """

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        half, quarter, sixteenth = dim // 2, dim // 4, dim // 16
        self.branch1 = conv_block(dim, half, 1, spatial_dims)
        self.branch3 = nn.Sequential(
            conv_block(dim + half, sixteenth, 1, spatial_dims),
            conv_block(sixteenth, quarter, 3, spatial_dims),
        )
        self.branch5 = nn.Sequential(
            conv_block(dim + half + quarter, sixteenth, 1, spatial_dims),
            conv_block(sixteenth, quarter, 5, spatial_dims),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the concatenated outputs of the branches: (B, D, *spatial) → (B, D, *spatial)."""
        b1 = self.branch1(hidden_states)
        b2 = self.branch3(torch.cat([hidden_states, b1], dim=1))
        b3 = self.branch5(torch.cat([hidden_states, b1, b2], dim=1))
        return torch.cat([b1, b2, b3], dim=1)
