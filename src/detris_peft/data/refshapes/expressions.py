"""Referring expressions of RefShapes: each fits exactly one shape of its scene, and every word in it is needed.

Three types of references:

- attributes: color, size and class identify the target ("the small red circle");
- place: they do not, but only one such shape is in that half of the image ("the circle on the left");
- relation: they do not, but only one such shape has that relation to another shape ("the red circle above the green
  triangle").

"On the left" is used only where both readings agree: "the leftmost" and "in the left half". Shapes close to the middle
are not described by their place. The complete vocabulary has 21 words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .scenes import HELD_OUT, Shape

REFERENCE_TYPES = ("attributes", "place", "relation")
# Direction of each word: (x to the right, y down).
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
HALF_MARGIN = 0.06  # minimum distance of a center from the middle, to be on a side
RELATION_GAP = 0.15  # minimum distance of two related centers


@dataclass(frozen=True)
class Phrase:
    """A class, optionally with color and size: "small red circle"."""

    kind: str
    color: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.kind) if word)

    def fits(self, shape: Shape) -> bool:
        return shape.kind == self.kind and self.color in (None, shape.color) and self.size in (None, shape.size)

    def count(self, scene: Sequence[Shape]) -> int:
        return sum(self.fits(shape) for shape in scene)


def describe(scene: Sequence[Shape], target: Shape, reference_type: str, *, novel: bool = False) -> list[str]:
    """Return every sentence of one reference type that refers to `target` and to no other shape in the scene.

    Args:
        scene: all shapes of the image.
        target: the shape to describe.
        reference_type: one of `REFERENCE_TYPES`.
        novel: only return sentences whose subject names a held-out combination of color and class.
    """
    subjects = [phrase for phrase in _phrases(target) if not novel or (phrase.color, phrase.kind) in HELD_OUT]
    if Phrase(target.kind).count(scene) < 2:  # without a distractor of its class the target is too easy
        return []
    sentences: list[str] = []
    if reference_type == "attributes":
        for phrase in subjects:
            if phrase.count(scene) == 1:
                sentences += [f"the {phrase}", str(phrase)]
        return sentences
    for subject in subjects:
        others = [shape for shape in scene if subject.fits(shape) and shape is not target]
        if not others:  # the location would be redundant
            continue
        if reference_type == "place":
            for word in PLACES:
                if _shift(target, word) > HALF_MARGIN and all(_shift(other, word) < -HALF_MARGIN for other in others):
                    preposition = "on" if word in ("left", "right") else "at"
                    sentences += [f"the {subject} {preposition} the {word}", f"the {word} {subject}"]
        else:
            for anchor, word in product(scene, RELATIONS):
                if anchor is not target and _is_related(target, others, anchor, word):
                    sentences += [f"the {subject} {word} the {name}" for name in _names(anchor, scene)]
    return sentences


def sample_references(
    rng: np.random.Generator, scene: Sequence[Shape], reference_types: Sequence[str], *, novel: bool
) -> list[tuple[int, str, list[str]]] | None:
    """Sample one reference of each type, all to different shapes.

    Returns:
        (index of the shape, reference type, 1 to 3 sentences) of each reference; None if the scene does not allow it.
    """
    references: list[tuple[int, str, list[str]]] = []
    free = list(rng.permutation(len(scene)))
    # Sample the rarest type first.
    for reference_type in sorted(reference_types, key=REFERENCE_TYPES.index, reverse=True):
        for index in free:
            sentences = describe(scene, scene[index], reference_type, novel=novel)
            if sentences:
                count = min(len(sentences), int(rng.integers(1, 4)))
                chosen = rng.choice(len(sentences), size=count, replace=False)
                references.append((int(index), reference_type, [sentences[number] for number in chosen]))
                free.remove(index)
                break
        else:
            return None
    return references


def _phrases(shape: Shape) -> Iterator[Phrase]:
    for color, size in product((None, shape.color), (None, shape.size)):
        yield Phrase(shape.kind, color, size)


def _names(shape: Shape, scene: Sequence[Shape]) -> list[Phrase]:
    """Return the shortest phrases that fit only this shape."""
    unique = [phrase for phrase in _phrases(shape) if phrase.count(scene) == 1]
    length = min((len(str(phrase).split()) for phrase in unique), default=0)
    return [phrase for phrase in unique if len(str(phrase).split()) == length]


def _shift(shape: Shape, word: str) -> float:
    """Return the distance from the image's middle towards that side, as a share of the image's side."""
    x, y = PLACES[word]
    return x * (shape.x - 0.5) + y * (shape.y - 0.5)


def _is_related(target: Shape, others: Sequence[Shape], anchor: Shape, word: str) -> bool:
    """Return whether the target clearly has this relation to the anchor (within 45°), and no other shape has it."""
    x, y = RELATIONS[word]

    def along(shape: Shape) -> float:
        return x * (shape.x - anchor.x) + y * (shape.y - anchor.y)

    across = abs(y * (target.x - anchor.x)) + abs(x * (target.y - anchor.y))
    return along(target) >= max(RELATION_GAP, across) and all(along(other) <= 0 for other in others)
