"""The sentences of RefShapes: each fits exactly one shape of its scene, and needs the words it is made of.

Three sorts of references:

- attributes: color, size and class single the target out ("the small red circle");
- place: they do not, but only one such shape lies in that half of the image ("the circle on the left");
- relation: they do not, but only one such shape lies so to another ("the red circle above the green triangle").

"On the left" is judged so that both readings agree, "the leftmost" and "in the left half"; what is nearly on the
border is not described. The whole vocabulary has 21 words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .scenes import HELD_OUT, Shape

SORTS = ("attributes", "place", "relation")
# Which way a word points: (x to the right, y down).
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
HALF_MARGIN = 0.06  # a center nearer than this to the middle lies neither left nor right
RELATION_GAP = 0.15  # how far apart two centers must lie to be put in relation


@dataclass(frozen=True)
class Phrase:
    """A class with or without color and size: "small red circle"."""

    kind: str
    color: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.kind) if word)

    def fits(self, shape: Shape) -> bool:
        return shape.kind == self.kind and self.color in (None, shape.color) and self.size in (None, shape.size)

    def count(self, scene: Sequence[Shape]) -> int:
        return sum(self.fits(shape) for shape in scene)


def describe(scene: Sequence[Shape], target: Shape, sort: str, *, novel: bool = False) -> list[str]:
    """Every sentence of one sort that refers to `target` and to nothing else in the scene.

    Args:
        novel: only sentences whose subject names a held-out color and class.
    """
    subjects = [phrase for phrase in _phrases(target) if not novel or (phrase.color, phrase.kind) in HELD_OUT]
    if Phrase(target.kind).count(scene) < 2:  # without a distractor of its class a shape is too easy
        return []
    sentences: list[str] = []
    if sort == "attributes":
        for phrase in subjects:
            if phrase.count(scene) == 1:
                sentences += [f"the {phrase}", str(phrase)]
        return sentences
    for subject in subjects:
        others = [shape for shape in scene if subject.fits(shape) and shape is not target]
        if not others:  # the place would be idle talk
            continue
        if sort == "place":
            for word in PLACES:
                if _lies(target, word) > HALF_MARGIN and all(_lies(other, word) < -HALF_MARGIN for other in others):
                    preposition = "on" if word in ("left", "right") else "at"
                    sentences += [f"the {subject} {preposition} the {word}", f"the {word} {subject}"]
        else:
            for anchor, word in product(scene, RELATIONS):
                if anchor is not target and _is_related(target, others, anchor, word):
                    sentences += [f"the {subject} {word} the {name}" for name in _names(anchor, scene)]
    return sentences


def sample_references(
    rng: np.random.Generator, scene: Sequence[Shape], sorts: Sequence[str], *, novel: bool
) -> list[tuple[int, str, list[str]]] | None:
    """One reference per wanted sort, each to another shape: (index of the shape, sort, 1 to 3 sentences).

    None where the scene does not give them.
    """
    references: list[tuple[int, str, list[str]]] = []
    free = list(rng.permutation(len(scene)))
    # The rarest sort chooses first.
    for sort in sorted(sorts, key=SORTS.index, reverse=True):
        for index in free:
            sentences = describe(scene, scene[index], sort, novel=novel)
            if sentences:
                number = min(len(sentences), int(rng.integers(1, 4)))
                chosen = rng.choice(len(sentences), size=number, replace=False)
                references.append((int(index), sort, [sentences[place] for place in chosen]))
                free.remove(index)
                break
        else:
            return None
    return references


def _phrases(shape: Shape) -> Iterator[Phrase]:
    for color, size in product((None, shape.color), (None, shape.size)):
        yield Phrase(shape.kind, color, size)


def _names(shape: Shape, scene: Sequence[Shape]) -> list[Phrase]:
    """The shortest phrases that fit this shape alone."""
    unique = [phrase for phrase in _phrases(shape) if phrase.count(scene) == 1]
    length = min((len(str(phrase).split()) for phrase in unique), default=0)
    return [phrase for phrase in unique if len(str(phrase).split()) == length]


def _lies(shape: Shape, word: str) -> float:
    """How far towards that side of the image's middle, in sides."""
    x, y = PLACES[word]
    return x * (shape.x - 0.5) + y * (shape.y - 0.5)


def _is_related(target: Shape, others: Sequence[Shape], anchor: Shape, word: str) -> bool:
    """The target clearly lies so to the anchor (within 45 degrees), and no other does even faintly."""
    x, y = RELATIONS[word]

    def along(shape: Shape) -> float:
        return x * (shape.x - anchor.x) + y * (shape.y - anchor.y)

    across = abs(y * (target.x - anchor.x)) + abs(x * (target.y - anchor.y))
    return along(target) >= max(RELATION_GAP, across) and all(along(other) <= 0 for other in others)
