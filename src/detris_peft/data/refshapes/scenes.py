"""Scenes of RefShapes: a few colored shapes on a noisy background; shapes do not touch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..masks import decode_mask, encode_mask, run_lengths

CLASSES = ("circle", "square", "triangle")  # category_id 1, 2, 3
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 80, 225),
    "yellow": (240, 215, 40),
    "purple": (160, 50, 185),
    "white": (240, 240, 240),
}
# Distance from center to corners, as a share of the image's side; the gap keeps the sizes distinguishable.
SIZES = {"small": (0.09, 0.115), "large": (0.17, 0.205)}
# At the same reach, a circle would look larger than a square, and a triangle smaller.
REACH = {"circle": 0.85, "square": 1.0, "triangle": 1.15}
# Attribute combinations that occur in testB only. Each color and each class still occurs in training.
HELD_OUT = frozenset({("red", "square"), ("green", "triangle"), ("blue", "circle")})

SAME_CLASS = 0.6  # probability that a shape repeats the class of an earlier one
SAME_COLOR = 0.4  # probability that it repeats the color
MARGIN = 0.02  # minimum gap between shapes, as a share of the side

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """One object with center (x to the right, y down) and reach as shares of the image's side; angle in degrees."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    reach: float
    angle: float


def sample_scene(rng: np.random.Generator, count: int, novel: float) -> tuple[Shape, ...]:
    """Sample `count` separate shapes, each with probability `novel` from `HELD_OUT`, and otherwise never from it."""
    while True:
        shapes: list[Shape] = []
        for _ in range(count):
            shape = _place(rng, *_sample_attributes(rng, shapes, novel), shapes)
            if shape is None:  # no space left: start from scratch
                break
            shapes.append(shape)
        if len(shapes) == count:
            return tuple(shapes)


def _sample_attributes(rng: np.random.Generator, shapes: list[Shape], novel: float) -> tuple[str, str, str]:
    size = _pick(rng, tuple(SIZES))
    if rng.random() < novel:
        color, kind = _pick(rng, sorted(HELD_OUT))
        return kind, color, size
    while True:
        kind, color = _pick(rng, CLASSES), _pick(rng, tuple(COLORS))
        if shapes:
            earlier = _pick(rng, shapes)
            kind = earlier.kind if rng.random() < SAME_CLASS else kind
            color = earlier.color if rng.random() < SAME_COLOR else color
        if (color, kind) not in HELD_OUT:
            return kind, color, size


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _place(rng: np.random.Generator, kind: str, color: str, size: str, shapes: list[Shape]) -> Shape | None:
    reach = rng.uniform(*SIZES[size]) * REACH[kind]
    for _ in range(30):
        x, y = rng.uniform(reach + MARGIN, 1 - reach - MARGIN, size=2)
        if all(math.hypot(x - other.x, y - other.y) > reach + other.reach + MARGIN for other in shapes):
            return Shape(kind, color, size, float(x), float(y), float(reach), float(rng.uniform(-15, 15)))
    return None


def draw_scene(
    rng: np.random.Generator, shapes: tuple[Shape, ...], side: int
) -> tuple[np.ndarray, list[Any], list[dict[str, Any]]]:
    """Draw a scene; a shape is painted exactly where its decoded mask is 1.

    The segmentations cover all forms that readers support: polygons for squares and triangles, uncompressed RLE for
    small circles, and compressed RLE for large circles.

    Returns:
        The image (side, side, 3) of uint8, and one COCO segmentation and one mask (compressed RLE) per shape.
    """
    image = _background(rng, side)
    segmentations: list[Any] = []
    masks: list[dict[str, Any]] = []
    for shape in shapes:
        if shape.kind == "circle":
            y, x = np.mgrid[:side, :side] + 0.5
            disc = np.hypot(x - shape.x * side, y - shape.y * side) <= shape.reach * side
            mask = encode_mask(disc, side, side)
            uncompressed = {"size": [side, side], "counts": run_lengths(mask["counts"]).tolist()}
            segmentation = uncompressed if shape.size == "small" else mask
        else:
            segmentation = [_outline(shape, side)]
            mask = encode_mask(segmentation, side, side)
        paint = np.array(COLORS[shape.color]) + rng.uniform(-12, 12, size=3)
        inside = decode_mask(mask) == 1
        image[inside] = paint + rng.normal(0, 4, size=(inside.sum(), 3))
        segmentations.append(segmentation)
        masks.append(mask)
    return image.clip(0, 255).round().astype(np.uint8), segmentations, masks


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a noisy gradient between two grays in a random direction."""
    ends = rng.uniform(70, 150, size=(2, 1)) + rng.uniform(-12, 12, size=(2, 3))
    direction = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    mix = np.clip(0.5 + (x * math.cos(direction) + y * math.sin(direction)) / math.sqrt(2), 0, 1)[..., None]
    return ends[0] * (1 - mix) + ends[1] * mix + rng.normal(0, 6, size=(side, side, 3))


def _outline(shape: Shape, side: int) -> list[float]:
    """Return the corners of a square or triangle, rotated by the shape's angle, in pixels: [x1, y1, x2, y2, ...]."""
    corners = (45, 135, 225, 315) if shape.kind == "square" else (90, 210, 330)
    outline = []
    for corner in corners:
        angle = math.radians(corner + shape.angle)
        outline.append(round((shape.x + shape.reach * math.cos(angle)) * side, 2))
        outline.append(round((shape.y - shape.reach * math.sin(angle)) * side, 2))
    return outline
