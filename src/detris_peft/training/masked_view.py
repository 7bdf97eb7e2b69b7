"""The masked view of a batch: MaskRIS (https://arxiv.org/abs/2411.19067), two-view distillation.

Symbols: B batch, H×W pixels, L text length.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..processing_detris import DetrisProcessor
from .arguments import TrainingArguments

_REPLACED, _RANDOM = 0.8, 0.1  # shares of the altered tokens, as in BERT; the others keep their token


class MaskedView:
    """Masks blocks of images and tokens of sentences. What is masked depends on seed, epoch, batch and rank alone.

    Start, end and padding tokens are never altered.

    Args:
        processor: its tokenizer knows the special tokens, and the mask token if it has one.
        arguments: shares, block size, mask token and seed.
        rank: index of the process.

    Raises:
        ValueError: there is no usable mask token.
    """

    def __init__(self, processor: DetrisProcessor, arguments: TrainingArguments, rank: int) -> None:
        self.arguments, self.rank = arguments, rank
        tokenizer = processor.tokenizer
        self.special = sorted({processor.pad_token_id, *tokenizer.all_special_ids})
        self.mask_token = mask_token_id(tokenizer, arguments.distill_mask_token, self.special)
        # The unknown token may be part of a sentence, so it may be altered. For CLIP, it is also the end token.
        kept = {processor.pad_token_id, tokenizer.pad_token_id, *_sentence_markers(tokenizer)} - {None}
        self.kept = torch.tensor(sorted(kept))
        self.words = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - set(self.special)))

    def __call__(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, epoch: int, batch: int
    ) -> dict[str, torch.Tensor]:
        """Mask normalized images (B, 3, H, W) and tokens (B, L).

        Args:
            epoch: the epoch.
            batch: number of the batch in the epoch.

        Returns:
            The further arguments of the model.
        """
        rng = np.random.default_rng([self.arguments.seed, epoch, batch, self.rank])
        return {
            "masked_pixel_values": self._mask_images(pixel_values, rng),
            "masked_input_ids": self._mask_tokens(input_ids, rng),
        }

    def _mask_images(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Set the same number of random blocks of each image to 0, the mean of the dataset after normalization."""
        side, (height, width) = self.arguments.distill_block_size, images.shape[-2:]
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        number = round(self.arguments.distill_image_ratio * rows * columns)
        ranks = rng.random((len(images), rows * columns)).argsort(axis=1).argsort(axis=1)
        blocks = torch.from_numpy(ranks < number).to(images.device, non_blocking=True).view(-1, 1, rows, columns)
        mask = blocks.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)[..., :height, :width]
        return images.masked_fill(mask, 0)

    def _mask_tokens(self, tokens: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        shape, device = tuple(tokens.shape), tokens.device
        draws = rng.random((2, *shape), dtype=np.float32)
        is_altered, action = torch.from_numpy(draws).to(device, non_blocking=True).unbind()
        random = self.words[torch.from_numpy(rng.integers(len(self.words), size=shape))].to(device, non_blocking=True)
        new = torch.where(action < _REPLACED, torch.full_like(tokens, self.mask_token), tokens)
        new = torch.where((action >= _REPLACED) & (action < _REPLACED + _RANDOM), random.to(tokens.dtype), new)
        is_word = ~torch.isin(tokens, self.kept.to(device, non_blocking=True))
        return torch.where(is_word & (is_altered < self.arguments.distill_token_ratio), new, tokens)


def mask_token_id(tokenizer: Any, text: str, special: list[int]) -> int:
    """Return the tokenizer's own mask token, or without one the token of `text`, an ordinary word.

    Never the unknown token: for CLIP it is also the end token, at which the sentence state is read.

    Args:
        tokenizer: the tokenizer.
        text: `TrainingArguments.distill_mask_token`.
        special: ids of the special tokens.

    Raises:
        ValueError: the text is not exactly one token, or a special token.
    """
    own = tokenizer.mask_token_id
    if own is not None and own not in (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id):
        return own
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] in special:
        got = f"{len(ids)} tokens" if len(ids) != 1 else f"the special token {tokenizer.convert_ids_to_tokens(ids[0])}"
        raise ValueError(
            f"distill_mask_token={text!r}: expected a text that is one ordinary token of the tokenizer, which has no "
            f"mask token of its own, got {got}; choose a common word of its vocabulary."
        )
    return ids[0]


def _sentence_markers(tokenizer: Any) -> set[int | None]:
    """Return the ids of the start and end tokens of a sentence."""
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
