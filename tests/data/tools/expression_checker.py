"""Decides by the meaning of a sentence, without the code that makes sentences, which annotated objects it is true of.

A sentence may have several readings: "the leftmost cup" is that of the center farthest left, or of the edge. Every
reading must lead to the same object. There are no margins here: what is true with a margin is also true without one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

PROTOTYPES = {
    "black": [(10, 10, 10), (45, 45, 45)],
    "white": [(250, 250, 250), (215, 215, 215)],
    "gray": [(125, 125, 125)],
    "red": [(220, 20, 20), (140, 20, 30)],
    "orange": [(250, 140, 20)],
    "brown": [(120, 75, 40), (80, 55, 35)],
    "yellow": [(245, 225, 40)],
    "green": [(40, 160, 50), (60, 90, 35), (30, 75, 45), (120, 180, 60)],
    "blue": [(30, 70, 210), (40, 110, 170), (25, 40, 90)],
    "purple": [(120, 40, 180)],
    "pink": [(245, 150, 190), (200, 100, 150)],
}
MOST = {"leftmost": "left", "rightmost": "right", "topmost": "top", "bottommost": "bottom"}
ORDINALS = {"second": 2, "third": 3, "fourth": 4}
SIDE = "(left|right|top|bottom)"
RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "top",
    "below": "bottom",
}


class Item(NamedTuple):
    """An annotation: its mask, and the positions that a person may compare, in pixels."""

    ann_id: int
    name: str
    crowd: bool
    mask: np.ndarray
    box: tuple[float, float, float, float]
    mean: tuple[float, float]

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def read_items(annotations: Iterable[dict], names: dict[int, str], height: int, width: int) -> list[Item]:
    """Return the annotations of an image of this size in pixels; `names` are those of the classes, keyed by id."""
    items = []
    for annotation in annotations:
        segmentation: Any = annotation["segmentation"]
        is_encoded = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
        rles: Any = segmentation if is_encoded else coco.frPyObjects(segmentation, height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools about NumPy 2
            mask = coco.decode(coco.merge(rles) if isinstance(rles, list) else rles)
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
        mean = (xs.mean(), ys.mean()) if len(xs) else (0.0, 0.0)
        name = names[annotation["category_id"]].replace("_", " ")
        items.append(Item(annotation["id"], name, bool(annotation.get("iscrowd")), mask, box, mean))
    return items


def violation(sentence: str, target: int, items: list[Item], pixels: np.ndarray) -> str | None:
    """Return why a sentence is not true of the annotation `target` alone, or None if it is.

    Args:
        sentence: the sentence.
        target: an annotation id.
        items: all annotations of the image.
        pixels: the image, uint8 RGB (H, W, 3).
    """
    text = sentence.removeprefix("the ")
    names = sorted({item.name for item in items}, key=len, reverse=True)
    parses = [parse for name in names for parse in _parses(text, name, items, pixels)]
    if not parses:
        return f"{sentence!r} has none of the known forms"
    for subject, readings in parses:
        if any(item.crowd for item in subject):
            return f"{sentence!r} is about a class with a crowd"
        for number, found in enumerate(readings):
            if {item.ann_id for item in found} != {target}:
                return f"{sentence!r} of {target}: reading {number} is true of {[item.ann_id for item in found]}"
    return None


def _parses(text: str, name: str, items: list[Item], pixels: np.ndarray) -> Iterable[tuple[list[Item], list]]:
    """Yield each parse with `name` as the subject: everything that the name may mean, and the results of readings."""
    subject = [item for item in items if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", item.name)]
    word = re.escape(name)
    if text == name:
        yield subject, [subject]
    if match := re.fullmatch(rf"(\w+) {word}", text):
        modifier = match[1]
        if modifier in PROTOTYPES:
            yield subject, [[item for item in subject if _color(item, pixels) == modifier]]
        if modifier in MOST:
            yield subject, _most(subject, MOST[modifier])
        if modifier in ("largest", "biggest", "larger", "bigger", "smallest", "smaller"):
            sign = -1 if modifier.startswith("small") else 1
            if (len(subject) == 2) == modifier.endswith("er"):
                yield subject, [_top(subject, lambda item: sign * int(item.mask.sum()))]
        if modifier in ("left", "right", "top", "bottom"):
            yield subject, _on_side(subject, modifier, pixels)
    if match := re.fullmatch(rf"{word} (?:farthest|closest) to the {SIDE}", text):
        yield subject, _most(subject, match[1])
    if match := re.fullmatch(rf"{word} (?:on the (left|right)|at the (top|bottom))", text):
        yield subject, _on_side(subject, match[1] or match[2], pixels)
    if text == f"{name} in the middle":
        middle = pixels.shape[1] / 2
        readings = [_top(subject, lambda item: -abs(item.center[0] - middle))]
        readings.append(_top(subject, lambda item: -abs(item.mean[0] - middle)))
        if len(subject) > 1:  # also the middle one of the row
            ordered = sorted(subject, key=lambda item: item.center[0])
            readings.append([ordered[len(ordered) // 2]] if len(ordered) % 2 else [])
        yield subject, readings
    if match := re.fullmatch(rf"(second|third|fourth) {word} from the {SIDE}", text):
        number = ORDINALS[match[1]]
        orders = [sorted(subject, key=key, reverse=True) for key in _positions(match[2])]
        yield subject, [order[number - 1 : number] for order in orders]
    if match := re.fullmatch(rf"{word} ({'|'.join(RELATIONS)}|next to) the (.+)", text):
        anchors = [item for item in items if re.search(rf"(?<!\w){re.escape(match[2])}(?!\w)", item.name)]
        if len(anchors) != 1 or anchors[0].crowd:
            yield subject, [[]]  # nobody knows which one is meant
        elif match[1] == "next to":
            yield subject, [_top(subject, lambda item: -_gap(item, anchors[0]))]
        else:
            keys = _positions(RELATIONS[match[1]])[:2]
            yield subject, [[item for item in subject if key(item) > key(anchors[0])] for key in keys]


def _positions(side: str) -> list[Callable[[Item], float]]:
    """Return positions that grow towards a side: of the box's center, the mask's mean, and the outer edge."""
    axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("right", "bottom") else -1)
    edge = axis + (2 if sign > 0 else 0)
    return [
        lambda item: sign * item.center[axis],
        lambda item: sign * item.mean[axis],
        lambda item: sign * item.box[edge],
    ]


def _most(subject: list[Item], side: str) -> list[list[Item]]:
    center, mean, edge = _positions(side)
    # Two objects may touch the same border of the image.
    by_edge = [item for item in _top(subject, edge) if item in _top(subject, center)]
    return [_top(subject, center), _top(subject, mean), by_edge]


def _on_side(subject: list[Item], side: str, pixels: np.ndarray) -> list[list[Item]]:
    axis = 0 if side in ("left", "right") else 1
    middle = pixels.shape[1 - axis] / 2 * (1 if side in ("right", "bottom") else -1)
    return [[item for item in subject if key(item) > middle] for key in _positions(side)[:2]]


def _top(subject: list[Item], key: Callable[[Item], float]) -> list[Item]:
    best = max(map(key, subject), default=0)
    return [item for item in subject if key(item) == best]


def _gap(first: Item, second: Item) -> float:
    """Return the distance of two boxes."""
    x = max(first.box[0] - second.box[2], second.box[0] - first.box[2], 0)
    y = max(first.box[1] - second.box[3], second.box[1] - first.box[3], 0)
    return float(np.hypot(x, y))


def _color(item: Item, pixels: np.ndarray) -> str:
    """Return the color that most pixels are nearest to."""
    inside = pixels[item.mask > 0].astype(np.float32)
    names = [name for name, shades in PROTOTYPES.items() for _ in shades]
    shades = np.array([shade for shades in PROTOTYPES.values() for shade in shades], np.float32)
    nearest = ((inside[:, None] - shades) ** 2).sum(axis=2).argmin(axis=1)
    votes: dict[str, int] = {}
    for index, count in enumerate(np.bincount(nearest, minlength=len(names))):
        votes[names[index]] = votes.get(names[index], 0) + int(count)
    return max(votes, key=votes.__getitem__)
