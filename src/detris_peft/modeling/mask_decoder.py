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
        self.self_attention = MultiheadAttention(dim, num_heads, dropout=dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = MultiheadAttention(dim, num_heads, dropout=dropout, kdim=text_dim, vdim=text_dim)
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
        attended = self.self_attention(q, q, u)
        patches = patches + self.dropout(self.self_attention_norm(attended))

        q = self.norm2(patches) + patch_positions
        k = text_states + text_positions
        attended = self.cross_attention(q, k, text_states, key_padding_mask=padding_mask)
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


class UpsampledConv2d(nn.Conv2d):
    """Bilinear upsampling by a factor of 2, then a 3×3 convolution without bias, with zeros around the image.

    Both are linear, so they can change places: the nine positions of the kernel are applied to the low-resolution map,
    which takes a quarter of the multiplications. Their results are interpolated, shifted and added, by one matrix per
    spatial dimension (see `_interpolation`). The output differs by rounding only.

    Args:
        in_channels: d.
        out_channels: e.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w) → (B, e, 2h, 2w), in channels-last memory format."""
        batch, dim, h, w = input.shape
        kernel = self.weight.permute(2, 3, 0, 1).reshape(3, -1, dim)  # rows of the kernel, columns × e, d
        pixels = input.flatten(2).transpose(1, 2)  # (B, h·w, d)
        rows = torch.stack([F.linear(pixels, weight) for weight in kernel.unbind()], dim=1)  # (B, 3, h·w, 3·e)
        vertical = _interpolation(h, rows).flatten(1)  # (2h, 3·h)
        rows = vertical.expand(batch, -1, -1) @ rows.view(batch, 3 * h, -1)  # (B, 2h, w·3·e)
        horizontal = _interpolation(w, rows).transpose(1, 2).flatten(1)  # (2w, w·3)
        output = horizontal.expand(batch * 2 * h, -1, -1) @ rows.reshape(batch * 2 * h, w * 3, -1)  # (B·2h, 2w, e)
        return output.view(batch, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _interpolation(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return (2·size, 3, size): upsample a line of pixels, shift it by -1, 0 and 1, and set zeros outside of it.

    The entries are multiples of 1/4, which every precision represents exactly.
    """
    pixels = torch.arange(2 * size, device=like.device)[:, None] + torch.arange(-1, 2, device=like.device)
    sources = ((pixels + 0.5) / 2 - 0.5).clamp(0, size - 1)  # as F.interpolate with align_corners=False
    distances = (sources[..., None] - torch.arange(size, device=like.device)).abs()
    inside = (pixels >= 0) & (pixels < 2 * size)
    return ((1 - distances).relu() * inside[..., None]).to(like.dtype)


def _upsampling_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(UpsampledConv2d(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU())


class Projector(nn.Module):
    """Upsample by a factor of 4, then convolve with a 3×3 dynamic kernel predicted from the sentence."""

    def __init__(self, dim: int, sentence_dim: int) -> None:
        super().__init__()
        self.upsample1 = _upsampling_block(dim, dim)
        self.upsample2 = _upsampling_block(dim, dim // 2)
        self.pixel_proj = PixelProjection(dim // 2)
        self.sentence_proj = nn.Linear(sentence_dim, 9 * (dim // 2) + 1)  # kernel, then bias

    def forward(self, features: torch.Tensor, sentence_state: torch.Tensor) -> torch.Tensor:
        """Features (B, d, h, w) and sentence state (B, S) → logits (B, 1, 4h, 4w)."""
        x = self.upsample2(self.upsample1(features))  # (B, d/2, 4h, 4w)
        kernel = self.sentence_proj(sentence_state)
        weight, bias = kernel[:, :-1].unflatten(1, (-1, 9)), kernel[:, -1]  # (B, d/2, 9), (B,)
        positions = self.pixel_proj(x.flatten(2), weight)  # (B, 9, 16·h·w)
        height, width = x.shape[-2:]
        # Each position is a map of its own, which is shifted by its offset in the kernel and added.
        padded = F.pad(positions.unflatten(2, (height, width)), (1, 1, 1, 1))
        shifted = [padded[:, 3 * i + j, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return torch.stack(shifted, dim=1).sum(dim=1, keepdim=True) + bias.view(-1, 1, 1, 1)


class PixelProjection(nn.Conv2d):
    """A 1×1 convolution of the pixels, and the product of the result with the sentence's kernel.

    The convolution is not applied to the pixels, but, transposed, to the kernel, which is much smaller.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 1)

    def forward(self, pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Pixels (B, c, N) and kernel (B, c, 9) → (B, 9, N): pixel by pixel, the product at each of nine positions."""
        assert self.bias is not None
        folded = kernel.transpose(1, 2) @ self.weight.flatten(1)  # (B, 9, c)
        return folded @ pixels + kernel.transpose(1, 2) @ self.bias[:, None]
