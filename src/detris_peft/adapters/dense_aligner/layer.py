"""The Dense Aligner: DETRIS (https://arxiv.org/abs/2501.08580), section 3.3, equations 1 to 3.

Symbols: B batch, N tokens, P prefix tokens (class and registers), h×w patch grid, N = P + h·w, C width of the image
encoder, D bottleneck width, E width of the cross-attention, L text length, T width of the text encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..dmoc import DenseMixtureOfConvolutions
from ..layer import ParallelAdapterLayer
from .config import DenseAlignerConfig


class CrossAligner(nn.Module):
    """Cross-attention from patches to the sentence (F_align of equation 3): (B, h·w, D), (B, L, T) → (B, h·w, D)."""

    def __init__(self, dim: int, text_dim: int, attention_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, attention_dim)
        self.key_value = nn.Linear(text_dim, attention_dim)
        # With projections of its own behind the two above, as the released weights have them.
        self.attention = nn.MultiheadAttention(attention_dim, num_heads, dropout=dropout, batch_first=True)
        self.output = nn.Linear(attention_dim, dim)

    def forward(self, patches: torch.Tensor, text_states: torch.Tensor) -> torch.Tensor:
        text = self.key_value(text_states)
        # No key padding mask: padding is attended, in training as in the released weights.
        attended, _ = self.attention(self.query(patches), text, text, need_weights=False)
        return self.output(attended)


class DenseAligner(nn.Module):
    """One branch: (B, N, C) tokens and (B, L, T) text states → (B, N, C), not yet scaled."""

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
                f"text_states is {text_states.shape[-1]} wide, this Dense Aligner was made for {self.text_dim}: set "
                f"DenseAlignerConfig(text_dim={text_states.shape[-1]}) or use the text encoder it was trained with."
            )
        h, w = grid
        z = self.down(tokens).relu()  # (B, N, D)
        prefix, patches = z[:, : z.shape[1] - h * w], z[:, z.shape[1] - h * w :]
        grid_states = patches.transpose(1, 2).unflatten(2, (h, w))  # (B, D, h, w)
        # Contiguous, not as the channels-last view it could be: convolutions then round as they did in the released
        # implementation, without which a training run leaves the authors' within ten steps.
        dense = self.dmoc(grid_states.contiguous())
        dense = dense.permute(0, 2, 3, 1).flatten(1, 2) + patches  # (B, h·w, D)
        aligned = self.cross(dense, text_states)
        # Prefix tokens have no place on the grid: they skip both modules, and z is added to all alike.
        return self.up(torch.cat([prefix, aligned], dim=1) + z)


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DenseAlignerLayer(ParallelAdapterLayer):
    """The MLP of an image block with Dense Aligners beside it."""

    adapter_layer_names = ("dense_aligner_branches",)

    @staticmethod
    def pick_input(args: tuple, kwargs: dict) -> Any:
        # Taken out of the keywords: an attention kernel has no use for them.
        return kwargs.pop("text_states", None), kwargs.pop("patch_grid", None)

    def make_branch(self, config: DenseAlignerConfig) -> nn.Module:
        return DenseAligner(self.width, config)

    def check_input(self, hidden_states: torch.Tensor, handed_over: Any) -> tuple:
        text_states, grid = handed_over or (None, None)
        batch, num_tokens, _ = hidden_states.shape
        if text_states is None:
            raise ValueError(
                "text_states is missing: pass the text encoder's last hidden states (B, L, T) to the image encoder, "
                "`model(pixel_values, text_states=...)`, or switch the Dense Aligners off with `disable_adapter()`."
            )
        if text_states.ndim != 3 or text_states.shape[0] != batch:
            raise ValueError(
                f"text_states has shape {tuple(text_states.shape)}, needed is ({batch}, L, T): one sentence for each "
                f"of the {batch} images."
            )
        if text_states.device != hidden_states.device:
            raise ValueError(
                f"text_states is on {text_states.device}, the image encoder on {hidden_states.device}: move one."
            )
        if grid is None or grid[0] * grid[1] > num_tokens:
            raise ValueError(
                f"patch_grid is {grid} for {num_tokens} tokens: call the image encoder with pixel_values, of which "
                "the grid is read, or pass patch_grid=(h, w)."
            )
        return hidden_states, text_states, grid
