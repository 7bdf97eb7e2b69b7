"""The Dense Aligner: DETRIS (https://arxiv.org/abs/2501.08580), section 3.3, equations 1 to 3.

Symbols: B batch, N tokens, P prefix tokens (class and registers), h×w patch grid, N = P + h·w, C width of the image
encoder, D bottleneck width, E width of the cross-attention, L text length, T width of the text encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..attention import MultiheadAttention
from ..dmoc import DenseMixtureOfConvolutions
from ..parallel import ParallelAdapterLayer
from .config import DenseAlignerConfig


class CrossAligner(nn.Module):
    """Cross-attention from patches to text (F_align in equation 3): (B, h·w, D), (B, L, T) → (B, h·w, D)."""

    def __init__(self, dim: int, text_dim: int, attention_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, attention_dim)
        self.key_value = nn.Linear(text_dim, attention_dim)
        # MultiheadAttention adds its own in-projections on top of these two, as in the released weights.
        self.attention = MultiheadAttention(attention_dim, num_heads, dropout=dropout)
        self.output = nn.Linear(attention_dim, dim)

    def forward(self, patches: torch.Tensor, text_states: torch.Tensor) -> torch.Tensor:
        text = self.key_value(text_states)
        # No key padding mask: patches also attend to padding, as in the training of the released weights.
        return self.output(self.attention(self.query(patches), text, text))


class DenseAligner(nn.Module):
    """Dense Aligner branch: tokens (B, N, C) and text states (B, L, T) → (B, N, C), unscaled."""

    def __init__(self, width: int, config: DenseAlignerConfig) -> None:
        super().__init__()
        self.text_dim = config.text_dim
        self.down = nn.Linear(width, config.dim)
        self.dmoc = DenseMixtureOfConvolutions(config.dim, spatial_dims=2)
        self.cross = CrossAligner(
            config.dim,
            config.text_dim,
            config.cross_attention_dim,
            config.cross_attention_heads,
            config.cross_attention_dropout,
        )
        self.up = nn.Linear(config.dim, width)
        self.apply(_kaiming)
        if config.init_weights == "identity":
            nn.init.zeros_(self.up.weight)

    def forward(self, tokens: torch.Tensor, text_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if text_states.shape[-1] != self.text_dim:
            raise ValueError(
                f"text_states: expected width {self.text_dim}, got {text_states.shape[-1]}; set "
                f"DenseAlignerConfig(text_dim={text_states.shape[-1]}), or use the text encoder that the adapter was "
                "trained with."
            )
        h, w = grid
        z = self.down(tokens).relu()  # (B, N, D)
        prefix, patches = z[:, : z.shape[1] - h * w], z[:, z.shape[1] - h * w :]
        grid_states = patches.transpose(1, 2).unflatten(2, (h, w))  # (B, D, h, w)
        # Contiguous rather than a channels-last view, which torch.compile cannot lower here.
        dense = self.dmoc(grid_states.contiguous())
        dense = dense.permute(0, 2, 3, 1).flatten(1, 2) + patches  # (B, h·w, D)
        aligned = self.cross(dense, text_states)
        # Prefix tokens are not on the grid: they skip both modules. z is added to all tokens.
        return self.up(torch.cat([prefix, aligned], dim=1) + z)


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DenseAlignerLayer(ParallelAdapterLayer):
    """The MLP of an image block with parallel Dense Aligners."""

    adapter_layer_names = ("dense_aligner_branches",)

    @staticmethod
    def extract_input(args: tuple, kwargs: dict) -> Any:
        # Popped, so that neither is forwarded to the attention kernel.
        return kwargs.pop("text_states", None), kwargs.pop("patch_grid", None)

    def make_branch(self, config: DenseAlignerConfig) -> nn.Module:
        return DenseAligner(self.width, config)

    def check_input(self, hidden_states: torch.Tensor, second_input: Any) -> tuple:
        text_states, grid = second_input or (None, None)
        batch, num_tokens, _ = hidden_states.shape
        if text_states is None:
            raise ValueError(
                "text_states is missing: pass the text encoder's last hidden states (B, L, T) to the image encoder, "
                "`model(pixel_values, text_states=...)`, or disable the Dense Aligners with `disable_adapter()`."
            )
        if text_states.ndim != 3 or text_states.shape[0] != batch:
            raise ValueError(
                f"text_states: expected shape ({batch}, L, T), one sentence per image, got {tuple(text_states.shape)}."
            )
        if text_states.device != hidden_states.device:
            raise ValueError(
                f"text_states: expected a tensor on {hidden_states.device}, the device of the image encoder, got "
                f"{text_states.device}; move one of them."
            )
        if grid is None or grid[0] * grid[1] > num_tokens:
            raise ValueError(
                f"patch_grid: expected (h, w) for {num_tokens} tokens, got {grid}; call the image encoder with "
                "pixel_values, from which the grid is computed, or pass patch_grid=(h, w)."
            )
        return hidden_states, text_states, grid
