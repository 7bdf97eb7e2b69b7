"""Mosaics of an image and three images of other scenes, whose sentences are similar.

This is the augmentation of NeMo (Ha et al., ECCV 2024, https://arxiv.org/abs/2411.01494): the model has to find the
target among more objects that resemble it. NeMo ranks images with CLIP; here shared words rank them, which needs no
model, see `SimilarImages`.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..errors import BadRowError
from ..row_decoder import Sample, sentences_of_rows, undecoded
from ..schema import decode_row
from .mirroring import SIDE_WORDS, can_be_flipped, word_list
from .similar_images import SimilarImages

# Words for a place in the image, or relative to another object, which are wrong or ambiguous in a mosaic: its other
# tiles have their own top, and their own objects behind others. Superlatives compare with everything in the image.
POSITION_WORDS = SIDE_WORDS | word_list("position_words.txt")
_OTHERS = 3


class Mosaic:
    """With some probability, puts the image of a sample into one tile of a 2x2 mosaic, at a random position.

    The other tiles show images with other ids, see `SimilarImages`. Each tile is a square with half of the model's
    `image_size` as its side, in which an image is letterboxed as by the processor.

    A sample stays as it is if it has no target, its sentence names a position or is not known not to (see
    `can_be_in_mosaic`), there are too few similar images, one of them is invalid, or its target would not be visible.

    Args:
        rows: the dataset of the samples, with the columns of `FEATURES`.
        processor: the model's `DetrisProcessor`.
        ratio: the probability, for samples that can become mosaics.

    Attributes:
        allowed: (S,) whether each sentence of the rows allows a mosaic.

    Raises:
        ValueError: the rows have fewer than four images, or no sentence allows a mosaic.
    """

    def __init__(self, rows: datasets.Dataset, processor: Any, ratio: float) -> None:
        self.rows, self.ratio, self.is_visible = undecoded(rows), ratio, processor.is_visible
        self.tile_processor = copy(processor.image_processor)
        self.tile_processor.image_size = processor.image_size // 2
        self.tile_processor.keep_aspect_ratio = False
        sentences = sentences_of_rows(self.rows)
        self.images = SimilarImages(sentences, np.array(self.rows["image_id"][:], dtype=np.int64))
        self.allowed = np.array([can_be_in_mosaic(text) for texts in sentences for text in texts], dtype=bool)
        if (count := len(self.images.row_of_image)) <= _OTHERS or not self.allowed.any():
            raise ValueError(
                f"mosaic_ratio: expected at least {_OTHERS + 1} images, and an English expression that names no "
                f"position, got {count} images and {self.allowed.sum()} such expressions; omit mosaic_ratio."
            )

    def __call__(self, sample: Sample, row: int, sentence: int, rng: np.random.Generator) -> Sample:
        """Return the sample, or a mosaic with it.

        Args:
            sample: the sample, which may be augmented.
            row, sentence: the row of the sample, and the index of its sentence in that row.
            rng: generator that depends only on seed, epoch and row.
        """
        is_allowed = self.allowed[self.images.first_of_row[row] + sentence]
        if sample.no_target or not is_allowed or rng.random() >= self.ratio:
            return sample
        others = self.images.choose(row, sentence, _OTHERS, rng)
        position = int(rng.integers(_OTHERS + 1))
        if others is None:
            return sample
        as_array = isinstance(sample.image, np.ndarray)
        try:
            tiles = [decode_row(self.rows[other], self.tile_processor.image_size, as_array) for other in others]
        except BadRowError:  # reported when its own turn comes
            return sample
        tiles = [(image, np.zeros_like(mask)) for image, mask in tiles]
        tiles.insert(position, (sample.image, sample.mask))
        pixels, mask = self._joined(tiles)
        if not self.is_visible(mask):
            return sample
        return replace(sample, image=pixels if as_array else Image.fromarray(pixels), mask=mask)

    def _joined(self, tiles: list[tuple[Any, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Join four images and their masks: uint8 (H, W, 3) and (H, W), where H = W is twice the side of a tile."""
        images, masks = zip(*tiles, strict=True)
        letterboxed = self.tile_processor(
            list(images),
            masks=list(masks),
            original_sizes=[mask.shape for mask in masks],
            return_tensors=None,
            as_bytes=True,
        )
        mask = (letterboxed["label_bytes"] > 127).astype(np.uint8)
        return _grid(letterboxed["pixel_bytes"]), _grid(mask)


def can_be_in_mosaic(sentence: str) -> bool:
    """Return whether a sentence is known not to depend on a position in the image, or on what else is in the image.

    As in `can_be_flipped`, the language of a sentence is unknown, so every word has to be a known English word.
    """
    words = set("".join(c if c.isalpha() else " " for c in sentence.lower()).split())
    words |= {word.removesuffix("s") for word in words}
    return words.isdisjoint(POSITION_WORDS) and can_be_flipped(sentence)


def _grid(tiles: np.ndarray) -> np.ndarray:
    """Join (4, h, w, ...) row by row to (2h, 2w, ...)."""
    return np.concatenate([np.concatenate(list(pair), axis=1) for pair in (tiles[:2], tiles[2:])])
