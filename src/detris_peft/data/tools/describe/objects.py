"""The annotated objects of an image: their class, place, size and color."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from ...masks import decode_mask

# A span of the same center, as (lowest, highest): the middle of the box and the mean of the mask's pixels may differ.
Span = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One annotated object. Positions are fractions of the image's width (x, to the right) and height (y, down).

    Args:
        ann_id: id of the annotation, unique in its split.
        name: name of its class.
        general: name of its supercategory, or "".
        category_id: id of its class.
        split: split of the annotation.
        mask: compressed RLE, or None for a crowd, and for an object without pixels or in many parts: it has no place,
            but its class occurs in the image.
        area: share of the image's pixels.
        box: (left, top, right, bottom).
        center_x, center_y: spans of the center.
        shares: share of the object's pixels that have each color; None if the colors cannot be named.
    """

    ann_id: int
    name: str
    category_id: int
    split: str
    mask: Mapping[str, Any] | None = None
    area: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    center_x: Span = (0.0, 0.0)
    center_y: Span = (0.0, 0.0)
    shares: Mapping[str, float] | None = field(default=None, compare=False)
    general: str = ""

    def matches(self, name: str) -> bool:
        """Return whether a class name may refer to this object.

        "Bear" also refers to a teddy bear, "cup" to cups, and "vehicle" to a car of the supercategory "vehicle".
        """
        part, own = words(name), words(self.name)
        contains = any(own[start : start + len(part)] == part for start in range(len(own) - len(part) + 1))
        return contains or self.general.casefold() == name.casefold()


def place(foreground: np.ndarray) -> dict[str, Any]:
    """Return the fields `area`, `box`, `center_x` and `center_y` of a mask (H, W) with foreground."""
    height, width = foreground.shape
    # Ten times as fast as `foreground.sum(axis, dtype=np.int64)`.
    columns, rows = (cv2.reduce(foreground, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for axis in (0, 1))
    area = int(columns.sum(dtype=np.int64))
    (left, right), (top, bottom) = _extent(columns), _extent(rows)
    mean_x = float(columns @ np.arange(width, dtype=np.int64)) / area + 0.5
    mean_y = float(rows @ np.arange(height, dtype=np.int64)) / area + 0.5
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return {
        "area": area / (height * width),
        "box": (left / width, top / height, right / width, bottom / height),
        "center_x": (min(mean_x, middle_x) / width, max(mean_x, middle_x) / width),
        "center_y": (min(mean_y, middle_y) / height, max(mean_y, middle_y) / height),
    }


def is_scattered(foreground: np.ndarray) -> bool:
    """Return whether no connected part of a mask (H, W) has most of its pixels, as in an outline around a crowd."""
    left, top, width, height = cv2.boundingRect(foreground)
    box = foreground[top : top + height, left : left + width]
    *_, stats, _ = cv2.connectedComponentsWithStats(box, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # without the background
    return bool(2 * areas.max() < areas.sum())


def decode_box(mask: Mapping[str, Any], box: Sequence[float]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return the mask inside its box, a uint8 array (h, w), and the box as slices (rows, columns) of the image."""
    foreground = decode_mask(mask)
    height, width = foreground.shape
    left, top, right, bottom = box
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    return foreground[rows, columns], (rows, columns)


@lru_cache(maxsize=10_000)
def words(name: str) -> tuple[str, ...]:
    """Return the words of a class name for comparisons: in lower case and in the singular."""
    return tuple(word[:-1] if is_plural(word) else word for word in re.split(r"[\s-]+", name.casefold()))


def is_plural(name: str) -> bool:
    """Return whether a name looks like a plural, as "skis"."""
    return name.endswith("s") and not name.endswith(("ss", "us"))


def _extent(counts: np.ndarray) -> tuple[int, int]:
    """Return the first index with a count, and one more than the last."""
    indices = np.flatnonzero(counts)
    return int(indices[0]), int(indices[-1]) + 1
