"""The cross-modal neck: DETRIS (https://arxiv.org/abs/2501.08580), section 3.4, equation 5.

Symbols: B batch, C width of the image encoder, S width of the sentence state, d width of the head, h×w patch grid.
"""

from __future__ import annotations

import torch
from torch import nn

from ..adapters.attention import MultiheadAttention


def conv_block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return convolution without bias → BatchNorm → ReLU; the spatial size stays the same."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class SentenceGate(nn.Module):
    """Scale the channels of a feature map by the sentence.

    This is the paper's cross-attention from patches to a single key. The softmax over one key is 1, so all patches get
    the same output, which is computed once, with the key as query. The query and key projections have no effect; they
    are kept because the released weights contain them.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = MultiheadAttention(dim, num_heads)

    def forward(self, features: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Features (B, d, h, w) and sentence (B, 1, d) → (B, d, h, w)."""
        gate = self.attention(key, key, key)
        return features * gate.transpose(1, 2).unsqueeze(-1)


class CrossModalNeck(nn.Module):
    """Fuse multi-level image features with the sentence embedding and coordinates."""

    def __init__(self, vision_dim: int, sentence_dim: int, dim: int, num_heads: int, num_feature_maps: int) -> None:
        super().__init__()
        self.sentence_proj = nn.Linear(sentence_dim, dim)
        self.tap_projs = nn.ModuleList(conv_block(vision_dim, dim, 1) for _ in range(num_feature_maps))
        self.gates = nn.ModuleList(SentenceGate(dim, num_heads) for _ in range(num_feature_maps))
        self.fuse = conv_block(num_feature_maps * dim, dim, 1)
        self.locate = nn.Sequential(conv_block(dim + 2, dim, 3), conv_block(dim, dim, 3))

    def forward(self, feature_maps: tuple[torch.Tensor, ...], sentence_state: torch.Tensor) -> torch.Tensor:
        """Feature maps of (B, C, h, w) each and the sentence state (B, S) → (B, d, h, w)."""
        key = self.sentence_proj(sentence_state).unsqueeze(1)  # (B, 1, d)
        gated = [gate(proj(x), key) for x, proj, gate in zip(feature_maps, self.tap_projs, self.gates, strict=True)]
        fused = self.fuse(torch.cat(gated, dim=1))
        return self.locate(torch.cat([fused, coordinates(fused)], dim=1)) + fused


def coordinates(features: torch.Tensor) -> torch.Tensor:
    """Return x and y of every patch, from -1 to 1 inclusive: (B, _, h, w) → (B, 2, h, w), x first."""
    batch, _, h, w = features.shape
    x = torch.linspace(-1, 1, w, device=features.device, dtype=features.dtype).expand(batch, 1, h, w)
    y = torch.linspace(-1, 1, h, device=features.device, dtype=features.dtype).view(h, 1).expand(batch, 1, h, w)
    return torch.cat([x, y], dim=1)
