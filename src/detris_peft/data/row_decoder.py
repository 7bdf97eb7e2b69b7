"""Decoding of rows into samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .errors import BadRowError
from .fields import check_sentence
from .schema import decode_row


@dataclass
class Sample:
    """One image, one sentence, and the mask of its target: a uint8 array (H, W) of 0 and 1.

    The mask has the size of the image file. A large JPEG may be decoded at 1/2, 1/4 or 1/8 of that size.
    """

    # With `as_arrays`, most JPEGs are RGB arrays of uint8 (H, W, 3).
    image: Image.Image | np.ndarray
    sentence: str
    mask: np.ndarray
    ref_id: int
    no_target: bool = False
    # Why the row cannot be used. If set, image and mask are placeholders and are not scored.
    error: BadRowError | None = None
    # Errors of invalid rows that were skipped and are reported with this sample.
    skipped: tuple[BadRowError, ...] = ()

    def pil_image(self) -> Image.Image:
        """Return the image as a PIL image."""
        return Image.fromarray(self.image) if isinstance(self.image, np.ndarray) else self.image


# Returns an augmented sample. Its random numbers come from a generator that depends only on seed, epoch and row.
Augmentation = Callable[[Sample, np.random.Generator], Sample]


@dataclass
class RowDecoder:
    """Decodes a row, checks that its mask is visible, and augments it."""

    image_size: int | None = None
    is_visible: Callable[[np.ndarray], bool] | None = None
    augment: Augmentation | None = None
    as_arrays: bool = False

    def decode(
        self, row: Mapping[str, Any], sentence: str, seed: Sequence[int] = (), *, no_target: bool = False
    ) -> Sample:
        """Return the sample of a row with this sentence.

        Args:
            row: a row with the columns of `FEATURES`, and the image not decoded.
            sentence: a sentence of this row or of another one.
            seed: seed of the augmentation.
            no_target: the sentence refers to nothing in the image, so the sample's mask is empty.

        Raises:
            BadRowError: the row is invalid, also if only its own mask is.
        """
        image, mask = decode_row(row, self.image_size, self.as_arrays)
        check_sentence(sentence, f"{row['file_name']}: reference {row['ref_id']}")  # it may belong to another row
        sample = Sample(image, sentence, mask, row["ref_id"], row["no_target"])
        if not self._has_label(sample):
            raise BadRowError(
                f"{row['file_name']}: reference {row['ref_id']}: expected a mask that is visible at the model's "
                f"image_size, got {int(mask.sum())} pixels of which none remain; crop the image, or train at a larger "
                "size",
                "mask_empty",
            )
        if no_target:
            sample = replace(sample, mask=np.zeros_like(mask), no_target=True)
        if self.augment is None:
            return sample
        augmented = self.augment(sample, np.random.default_rng(seed))
        return augmented if self._has_label(augmented) else sample

    def _has_label(self, sample: Sample) -> bool:
        return sample.no_target or self.is_visible is None or self.is_visible(sample.mask)


def undecoded(rows: Any) -> Any:
    """Return the rows with images that are not decoded: `decode_row` decodes them, because its errors name the file.

    Raises:
        TypeError: the rows are not a dataset.
    """
    if not isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(f"rows: expected a datasets.Dataset, got {type(rows).__name__}; load it with a reader.")
    return rows.cast_column("image", datasets.Image(decode=False))


def sentences_of_rows(rows: datasets.Dataset) -> list[list[str]]:
    """Return the sentences of each row; a row without sentences, which is refused when it is decoded, has one: ""."""
    texts = rows["sentences"][:] if len(rows) else []
    return [[text or "" for text in row or [""]] for row in texts]
