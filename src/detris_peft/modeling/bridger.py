"""The Bridger: ETRIS (https://arxiv.org/abs/2307.11545), section 3.2.

Symbols: B batch, N tokens, P prefix tokens (class and registers), h×w patch grid, N = P + h·w, C width of the image
encoder, L text length, T width of the text encoder, d width of the Bridger.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..adapters.attention import MultiheadAttention
from .bridger_config import BridgerConfig
from .encoder_run import EncoderRun, enable_encoder_runs
from .neck import conv_block

Pair = tuple[torch.Tensor, torch.Tensor]  # patches (B, h·w, d) and words (B, L, d)


class BridgerStage(nn.Module):
    """One stage: reduce both sides to width d, let them attend to each other, and restore the widths.

    Args:
        vision_dim: C.
        text_dim: T.
        dim: d.
        num_heads: number of attention heads.
        is_first: whether there is no previous stage, whose pair is added.
        is_last: whether the map is reduced by a transposed convolution and restored by a convolution; the other way
            round in the other stages. With a kernel of 1×1 they differ only in the layout of their weights.
    """

    def __init__(
        self, vision_dim: int, text_dim: int, dim: int, num_heads: int, is_first: bool, is_last: bool
    ) -> None:
        super().__init__()
        down, up = (transposed_conv_block, _conv_block) if is_last else (_conv_block, transposed_conv_block)
        self.vision_down = down(vision_dim, dim)
        self.vision_up = up(dim, vision_dim)
        self.text_down = nn.Linear(text_dim, dim)
        self.text_up = nn.Linear(dim, text_dim)
        self.vision_attention = MultiheadAttention(dim, num_heads)
        self.text_attention = MultiheadAttention(dim, num_heads)
        self.vision_norm = None if is_first else nn.LayerNorm(dim)
        self.text_norm = None if is_first else nn.LayerNorm(dim)
        self.apply(_initialize)

    def forward(
        self, patches: torch.Tensor, words: torch.Tensor, grid: tuple[int, int], previous: Pair | None
    ) -> tuple[torch.Tensor, torch.Tensor, Pair]:
        """Patches (B, h·w, C), words (B, L, T), grid (h, w) and the previous pair → both updates and the pair."""
        v = self.vision_down(patches.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)  # (B, h·w, d)
        t = self.text_down(words)  # (B, L, d)
        if previous is not None and self.vision_norm is not None and self.text_norm is not None:
            v, t = self.vision_norm(v + previous[0]), self.text_norm(t + previous[1])
        # No key padding mask: patches also attend to padding, as in the authors' implementation.
        from_words = self.vision_attention(v, t, t)
        from_patches = self.text_attention(t, v, v)
        fused = (v * from_words).transpose(1, 2).unflatten(2, grid)  # (B, d, h, w)
        return self.vision_up(fused).flatten(2).transpose(1, 2), self.text_up(t * from_patches), (v, t)


class Bridger(nn.Module):
    """Connect an image encoder and a text encoder in both directions, at several depths.

    Stage i takes the outputs of the blocks `vision_after_blocks[i]` and `text_after_blocks[i]`, and adds an update to
    each of them. Prefix tokens do not change. For each stage with widths C, T and d:

    - patches: convolution C → d without bias, BatchNorm, ReLU; words: linear layer T → d;
    - from the second stage on, the pair of the previous stage is added, and both sides are normalized by a LayerNorm;
    - this pair (v, t) is what the next stage adds. Both sides attend at the same time: v · attention(v, t, t) and
      t · attention(t, v, v), with elementwise products;
    - patches: convolution d → C without bias, BatchNorm, ReLU; words: linear layer d → T.

    All convolutions are 1×1. With C = 768, T = 512, d = 128 and 3 stages, a stage has 98,304 + 256 (patches down),
    65,664 (words down), 2 · 66,048 (attention), 98,304 + 1,536 (patches up) and 66,048 (words up) parameters, and the
    two pairs of LayerNorms 1,024: in total 1,387,648.

    Args:
        config: widths and stages.
        vision_model: image encoder, with or without adapters. It is prepared for `EncoderRun`, but not kept.
        text_model: text encoder; likewise.
    """

    def __init__(self, config: BridgerConfig, vision_model: Any, text_model: Any) -> None:
        super().__init__()
        self.vision_after_blocks, self.text_after_blocks = config.vision_after_blocks, config.text_after_blocks
        for model in (vision_model, text_model):
            enable_encoder_runs(model)
        vision_dim, text_dim = vision_model.config.hidden_size, text_model.config.hidden_size
        count = len(config.vision_after_blocks)
        self.stages = nn.ModuleList(
            BridgerStage(vision_dim, text_dim, config.dim, config.num_heads, is_first=i == 0, is_last=i == count - 1)
            for i in range(count)
        )

    def forward(
        self,
        index: int,
        image_states: torch.Tensor,
        text_states: torch.Tensor,
        grid: tuple[int, int],
        previous: Pair | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, Pair]:
        """Run one stage.

        Args:
            index: the stage, counted from 0.
            image_states: (B, N, C).
            text_states: (B, L, T).
            grid: (h, w).
            previous: the pair of the previous stage.

        Returns:
            Image states and text states with their updates, and the pair of this stage.
        """
        stage: Any = self.stages[index]
        dtype = stage.text_down.weight.dtype  # the encoders may have a lower precision
        prefix, patches = image_states.split([image_states.shape[1] - grid[0] * grid[1], grid[0] * grid[1]], dim=1)
        vision_update, text_update, pair = stage(patches.to(dtype), text_states.to(dtype), grid, previous)
        return torch.cat([prefix, patches + vision_update], dim=1), text_states + text_update, pair

    def connect(
        self, image_run: EncoderRun, text_run: EncoderRun, grid: tuple[int, int]
    ) -> tuple[BaseModelOutput, BaseModelOutput]:
        """Run both encoders to their ends; return the outputs of the image encoder and of the text encoder."""
        pair = None
        for i, blocks in enumerate(zip(self.vision_after_blocks, self.text_after_blocks, strict=True)):
            image_states, text_states = image_run.run_through(blocks[0]), text_run.run_through(blocks[1])
            image_states, text_states, pair = self(i, image_states, text_states, grid, pair)
            image_run.replace(image_states)
            text_run.replace(text_states)
        return image_run.finish(), text_run.finish()


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return conv_block(in_channels, out_channels, 1)


def transposed_conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return 1×1 transposed convolution without bias → BatchNorm → ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def _initialize(module: nn.Module) -> None:
    """Initialize as the authors' implementation does."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
