"""The vision-language decoder and the projector: DETRIS (https://arxiv.org/abs/2501.08580), section 3.4, equation 6.

Symbols: B batch, L text length, T width of the text encoder, S width of the sentence state, d width of the head, h×w
patch grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.attention import MultiheadAttention
from .neck import conv_block


def sinusoid(length: int, dim: int, like: torch.Tensor) -> torch.Tensor:
    """Return alternating sines and cosines (length, dim) with frequencies exp(-ln 10000 · 2i / dim)."""
    position = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) * (-math.log(1e4) / dim))
    angle = position * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def sinusoid_2d(h: int, w: int, dim: int, like: torch.Tensor) -> torch.Tensor:
    """Return (h·w, dim): the first half of the channels encodes x, the second half y."""
    x = sinusoid(w, dim // 2, like).expand(h, w, dim // 2)
    y = sinusoid(h, dim // 2, like).unsqueeze(1).expand(h, w, dim // 2)
    return torch.cat([x, y], dim=-1).flatten(0, 1)


class DecoderLayer(nn.Module):
    """Self-attention over patches, cross-attention to words, feed-forward network.

    As in the released weights, LayerNorms are before each of the three, after each attention, and inside the
    feed-forward network.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attention = MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = MultiheadAttention(
            dim, num_heads, dropout=dropout, batch_first=True, kdim=text_dim, vdim=text_dim
        )
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(ffn_dim), nn.Linear(ffn_dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        patches: torch.Tensor,
        text_states: torch.Tensor,
        patch_positions: torch.Tensor,
        text_positions: torch.Tensor,
        padding_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Patches (B, h·w, d), words (B, L, T), their sinusoids, mask (B, L), True at padding → (B, h·w, d)."""
        u = self.norm1(patches)
        q = u + patch_positions
        attended, _ = self.self_attention(q, q, u, need_weights=False)
        patches = patches + self.dropout(self.self_attention_norm(attended))

        q = self.norm2(patches) + patch_positions
        k = text_states + text_positions
        attended, _ = self.cross_attention(q, k, text_states, key_padding_mask=padding_mask, need_weights=False)
        patches = patches + self.dropout(self.cross_attention_norm(attended))

        return patches + self.dropout(self.ffn(self.norm3(patches)))


class VisionLanguageDecoder(nn.Module):
    """Transformer decoder: self-attention over patches, cross-attention to words."""

    def __init__(self, dim: int, text_dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, text_dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: torch.Tensor, text_states: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        """Features (B, d, h, w), words (B, L, T) and mask (B, L), True at padding → (B, d, h, w)."""
        _, dim, h, w = features.shape
        patch_positions = sinusoid_2d(h, w, dim, like=features)
        text_positions = sinusoid(text_states.shape[1], text_states.shape[2], like=text_states)
        patches = features.flatten(2).transpose(1, 2)  # (B, h·w, d)
        for layer in self.layers:
            patches = layer(patches, text_states, patch_positions, text_positions, padding_mask)
        return self.norm(patches).transpose(1, 2).unflatten(2, (h, w))


class Projector(nn.Module):
    """Upsample by a factor of 4, then convolve with a 3×3 dynamic kernel predicted from the sentence."""

    def __init__(self, dim: int, sentence_dim: int) -> None:
        super().__init__()
        self.upsample1 = conv_block(dim, dim, 3)
        self.upsample2 = conv_block(dim, dim // 2, 3)
        self.pixel_proj = nn.Conv2d(dim // 2, dim // 2, 1)
        self.sentence_proj = nn.Linear(sentence_dim, 9 * (dim // 2) + 1)  # kernel, then bias

    def forward(self, features: torch.Tensor, sentence_state: torch.Tensor) -> torch.Tensor:
        """Features (B, d, h, w) and sentence state (B, S) → logits (B, 1, 4h, 4w)."""
        x = self.upsample1(_upsample(features))
        x = self.pixel_proj(self.upsample2(_upsample(x)))  # (B, d/2, 4h, 4w)
        kernel = self.sentence_proj(sentence_state)
        batch, channels, height, width = x.shape
        weight, bias = kernel[:, :-1].reshape(batch, channels, 3, 3), kernel[:, -1]
        if torch.compiler.is_exporting():
            return _convolve_any_batch(x, weight, bias)
        # One group per sample: each image is convolved with the kernel of its own sentence.
        logits = F.conv2d(x.reshape(1, batch * channels, height, width), weight, bias, padding=1, groups=batch)
        return logits.transpose(0, 1)


def _convolve_any_batch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve (B, c, H, W) with one 3×3 kernel (B, c, 3, 3) and bias (B,) per sample → (B, 1, H, W).

    For exported models: a grouped convolution would fix the batch size, because its number of groups is a constant.
    The kernel's nine positions are applied to all pixels as one matrix product; their results are shifted and added.
    """
    height, width = x.shape[-2:]
    positions = weight.flatten(2).transpose(1, 2) @ x.flatten(2)  # (B, 9, H·W)
    padded = F.pad(positions.unflatten(2, (height, width)), (1, 1, 1, 1))
    shifted = [padded[:, 3 * i + j, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted, dim=1).sum(dim=1, keepdim=True) + bias.view(-1, 1, 1, 1)


def _upsample(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
