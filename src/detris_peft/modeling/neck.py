"""The cross-modal neck: DETRIS (https://arxiv.org/abs/2501.08580), section 3.4, equation 5.

Symbols: B batch, C width of the image encoder, S width of the sentence, d width of the head, h×w patch grid.
"""

from __future__ import annotations

import torch
from torch import nn


def conv_block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution without bias → BatchNorm → ReLU that keeps the spatial size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class SentenceGate(nn.Module):
    """Scales the channels of a feature map by the sentence.

    The paper's cross-attention from patches to a single key. Over one key softmax is 1, so every patch gets the same
    answer: it is asked once, with the key as its own query. The query and key projections have no effect; they are
    kept because the released weights hold them.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, features: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w), (B, 1, d) → (B, d, h, w)."""
        gate, _ = self.attention(key, key, key, need_weights=False)
        return features * gate.transpose(1, 2).unsqueeze(-1)


class CrossModalNeck(nn.Module):
    """Fuses the taps of the image encoder with the sentence and with where things are."""

    def __init__(self, vision_dim: int, sentence_dim: int, dim: int, num_heads: int, num_taps: int) -> None:
        super().__init__()
        self.sentence_proj = nn.Linear(sentence_dim, dim)
        self.tap_projs = nn.ModuleList(conv_block(vision_dim, dim, 1) for _ in range(num_taps))
        self.gates = nn.ModuleList(SentenceGate(dim, num_heads) for _ in range(num_taps))
        self.fuse = conv_block(num_taps * dim, dim, 1)
        self.locate = nn.Sequential(conv_block(dim + 2, dim, 3), conv_block(dim, dim, 3))

    def forward(self, taps: tuple[torch.Tensor, ...], sentence_state: torch.Tensor) -> torch.Tensor:
        """Taps (B, C, h, w) each and the sentence (B, S) → (B, d, h, w)."""
        key = self.sentence_proj(sentence_state).unsqueeze(1)  # (B, 1, d)
        gated = [gate(proj(tap), key) for tap, proj, gate in zip(taps, self.tap_projs, self.gates, strict=True)]
        fused = self.fuse(torch.cat(gated, dim=1))
        return self.locate(torch.cat([fused, coordinates(fused)], dim=1)) + fused


def coordinates(features: torch.Tensor) -> torch.Tensor:
    """x and y of every patch in [-1, 1], ends included: (B, _, h, w) → (B, 2, h, w), x first."""
    batch, _, h, w = features.shape
    x = torch.linspace(-1, 1, w, device=features.device, dtype=features.dtype).expand(batch, 1, h, w)
    y = torch.linspace(-1, 1, h, device=features.device, dtype=features.dtype).view(h, 1).expand(batch, 1, h, w)
    return torch.cat([x, y], dim=1)
