"""Shapes of labeling tools: their numbers, and groups of shapes that are one object."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import BadRowError, notice, short
from ...fields import read_mask
from ...masks import unite_masks
from .objects import LabeledObject, object_id

Mask = Callable[[int, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Shape:
    """A shape with an area, which is an object or a part of one.

    Args:
        where, mask, label, sentences, text_field: see `LabeledObject`.
        group: shapes of an image with the same group are one object; None for a shape that is one.
    """

    where: str
    mask: Mask
    label: str | BadRowError | None = None
    sentences: Any = None
    text_field: str = "sentences"
    group: Hashable | None = None


def unite_shapes(
    shapes: Iterable[Shape | BadRowError | None], image: str, first: int = 0
) -> list[LabeledObject | BadRowError]:
    """Return the objects that shapes of one image form, in the order of their first shapes.

    Args:
        shapes: the shapes, errors of invalid ones, and None for those that are left out.
        image: name of the image.
        first: index of the first shape; ids depend on it.
    """
    groups: dict[Hashable, list[tuple[int, Shape]]] = {}
    objects: dict[Hashable, LabeledObject | BadRowError] = {}
    for index, shape in enumerate(shapes, start=first):
        if isinstance(shape, BadRowError):
            objects[index] = shape
        elif shape is not None:
            key = index if shape.group is None else (shape.group,)
            groups.setdefault(key, []).append((index, shape))
            objects[key] = _united(groups[key], image)
    return list(objects.values())


def _united(parts: Sequence[tuple[int, Shape]], image: str) -> LabeledObject:
    index, shape = parts[0]
    written = [part for _, part in parts if part.sentences is not None]
    return LabeledObject(
        where=shape.where,
        ann_id=object_id(image, index),
        mask=shape.mask if len(parts) == 1 else partial(_united_mask, [part.mask for _, part in parts]),
        label=shape.label,
        sentences=_united_sentences([part.sentences for part in written]),
        text_field=written[0].text_field if written else shape.text_field,
    )


def _united_mask(masks: Sequence[Mask], height: int, width: int) -> Mapping[str, Any]:
    return unite_masks([mask(height, width) for mask in masks], height, width)


def _united_sentences(values: Sequence[Any]) -> Any:
    """Return all sentences of the parts once; of values that are not text, the first, for its error message."""
    wrong = next((value for value in values if not isinstance(value, list)), None)
    if wrong is not None or not values:
        return wrong
    sentences: list[Any] = []
    for value in values:
        sentences += [sentence for sentence in value if sentence not in sentences]
    return sentences


def read_number(values: Mapping[str, Any], name: str, where: str) -> float:
    """Return a field that is a finite number, or text that is one.

    Args:
        values: the fields.
        name: name of the field.
        where: prefix of the error message.

    Raises:
        BadRowError: it is missing or anything else.
    """
    value = values.get(name)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"{where}: expected a number as '{name}', got {short(value)}; fix it", "mask_malformed")
    return number


def paste_mask(pixels: np.ndarray, left: int, top: int, where: str, height: int, width: int) -> dict[str, Any]:
    """Return the mask (height, width) of an image from the pixels of a box; the rest of the image is background.

    Args:
        pixels: array (h, w), non-zero for foreground; the box may exceed the image.
        left, top: position of the box in pixels.
        where: prefix of the error message.
        height, width: size of the image in pixels.

    Raises:
        BadRowError: there is no foreground in the image.
    """
    mask = np.zeros((height, width), np.uint8)
    x, y = max(left, 0), max(top, 0)
    inside = (
        pixels[y - top : height - top, x - left : width - left] if min(height - top, width - left) > 0 else pixels[:0]
    )
    if not inside.any():
        outside = bool(pixels.any())
        raise BadRowError(
            f"{where}: expected foreground within the image of {width}x{height} pixels, got "
            f"{'all of it outside' if outside else 'none'}; fix the mask",
            "mask_out_of_frame" if outside else "mask_empty",
        )
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return read_mask(mask, height, width, where)


def notice_without_area(left_out: Mapping[str, int], where: str) -> None:
    """Notice the shapes that are left out because they have no area, such as points and lines.

    Args:
        left_out: the number of such shapes of each type.
        where: prefix of the message.
    """
    if any(left_out.values()):
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()) if count)
        notice("shape_without_area", f"{where}: shapes without an area are not used: {counts}")
