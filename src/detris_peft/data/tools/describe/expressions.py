"""Referring expressions from annotated objects: each is true of exactly one object of its image, with a margin.

Six kinds, where the group of an object is everything that its class name may refer to, crowds and tiny objects
included:

- class: it is the only one of its group ("the dog");
- color: it clearly has a color that all others clearly lack ("the red car");
- size: it is clearly larger or smaller than all others ("the largest boat");
- position: it is the only one on a side of the image, the only one in the middle, or clearly the outermost
  ("the cup on the left", "the leftmost person");
- order: its place in a row ("the second chair from the left");
- relation: the only one on that side of an object whose class occurs once ("the cup above the sink").

A crowd, an object without pixels, and a mask in many parts have no clear place, so objects of their class get no
sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import geometry
from .colors import clear_color, lacks_color
from .objects import SceneObject, is_plural, words

KINDS = ("class", "color", "size", "position", "order", "relation")
# The color of a person's pixels is that of clothes, and its name would be read as that of the skin.
_PEOPLE = frozenset(
    {
        *("person", "people", "pedestrian", "human", "man", "men", "woman", "women", "lady", "guy", "boy", "girl"),
        *("baby", "child", "children", "kid", "toddler", "infant", "adult", "male", "female", "rider", "driver"),
        *("cyclist", "skier", "player", "officer", "worker", "passenger"),
        *("face", "head", "hand", "arm", "leg", "body", "skin", "hair"),
    }
)
_ORDINALS = {2: "second", 3: "third", 4: "fourth"}
_MOST = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
_RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "top": ("above",),
    "bottom": ("below",),
}


class Expression(NamedTuple):
    """A sentence, and the kind of rule that made it."""

    kind: str
    sentence: str


def find_expressions(scene: Sequence[SceneObject], min_area: float) -> list[dict[str, list[list[str]]]]:
    """Return all expressions of each object: the true statements by kind, each in one or several wordings.

    Args:
        scene: all annotated objects of the image.
        min_area: minimum share of the image that an object must cover to be described or mentioned.
    """
    # "The bear" may mean a teddy bear of the group, but "the teddy bear" has a group of its own.
    groups = {name: [item for item in scene if item.matches(name)] for name in {item.name for item in scene}}
    anchors = [
        item for item in scene if len(groups[item.name]) == 1 and item.mask is not None and item.area >= min_area
    ]
    return [_find(target, groups[target.name], anchors, min_area) for target in scene]


def _find(
    target: SceneObject, group: Sequence[SceneObject], anchors: Sequence[SceneObject], min_area: float
) -> dict[str, list[list[str]]]:
    if target.mask is None or target.area < min_area or any(item.mask is None for item in group):
        return {}
    name, others = target.name, [item for item in group if item is not target]
    found = {
        "class": [] if others else [[f"the {name}", name]],
        "color": list(_colors(name, target, others)),
        "size": list(_sizes(name, target, others)),
        "position": list(_positions(name, target, others)),
        "order": list(_orders(name, target, group)),
        "relation": list(_relations(name, target, others, anchors)),
    }
    return {kind: statements for kind, statements in found.items() if statements}


def choose_expressions(
    found: dict[str, list[list[str]]], limit: int, seed: str, excluded: frozenset[str] = frozenset()
) -> list[Expression]:
    """Return up to `limit` expressions of as many kinds as possible.

    Args:
        found: from `find_expressions`.
        limit: maximum number of expressions.
        seed: text that determines the choice, on every machine and in every version of Python.
        excluded: sentences that are not used.
    """

    def key(text: str) -> bytes:
        return hashlib.blake2b(f"{seed}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    queues = []
    for kind in sorted(found, key=key):
        wordings = [min(statement, key=key) for statement in found[kind]]
        queues.append([Expression(kind, text) for text in sorted(wordings, key=key) if text not in excluded])
    chosen: list[Expression] = []
    while len(chosen) < limit and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue][: limit - len(chosen)]
    return chosen


def _colors(name: str, target: SceneObject, others: Sequence[SceneObject]) -> Iterator[list[str]]:
    color = clear_color(target.shares)
    if color and not _PEOPLE & set(words(name)) and all(lacks_color(o.shares, color) for o in others):
        yield [f"the {color} {name}", f"{color} {name}"]


def _sizes(name: str, target: SceneObject, others: Sequence[SceneObject]) -> Iterator[list[str]]:
    if not others:
        return
    if geometry.is_largest(target, others):
        adjectives = ("larger", "bigger") if len(others) == 1 else ("largest", "biggest")
        yield [f"the {adjective} {name}" for adjective in adjectives]
    if geometry.is_smallest(target, others):
        yield [f"the {'smaller' if len(others) == 1 else 'smallest'} {name}"]


def _positions(name: str, target: SceneObject, others: Sequence[SceneObject]) -> Iterator[list[str]]:
    for side, most in _MOST.items():
        if geometry.is_on_side(target, side) and all(geometry.is_off_side(other, side) for other in others):
            preposition = "on" if side in ("left", "right") else "at"
            wordings = [f"the {name} {preposition} the {side}", f"{name} {preposition} the {side}"]
            yield [*wordings, f"the {side} {name}"] if others else wordings
        if others and all(geometry.is_farther(target, other, side) for other in others):
            farthest = "farthest to" if side in ("left", "right") else "closest to"
            yield [f"the {most} {name}", f"the {name} {farthest} the {side}"]
    left, right = ([geometry.is_farther(other, target, side) for other in others] for side in ("left", "right"))
    between = all(one or two for one, two in zip(left, right, strict=True)) and sum(left) == sum(right)
    if geometry.is_in_middle(target) and between and all(map(geometry.is_off_middle, others)):
        yield [f"the {name} in the middle", f"{name} in the middle"]


def _orders(name: str, target: SceneObject, group: Sequence[SceneObject]) -> Iterator[list[str]]:
    if not 3 <= len(group) <= 2 * len(_ORDINALS) or is_plural(name):  # "the second skis" is not English
        return
    for side in _MOST:
        place = geometry.rank(target, group, side)
        if place in _ORDINALS and place < len(group):
            yield [f"{start}{_ORDINALS[place]} {name} from the {side}" for start in ("the ", "")]


def _relations(
    name: str, target: SceneObject, others: Sequence[SceneObject], anchors: Sequence[SceneObject]
) -> Iterator[list[str]]:
    for anchor in anchors:
        if anchor is target or any(anchor is other for other in others):
            continue
        for side, relations in _RELATIONS.items():
            others_are_not = (geometry.is_not_beyond(other, anchor, side) for other in others)
            if geometry.is_beyond(target, anchor, side) and all(others_are_not):
                yield [f"the {name} {relation} the {anchor.name}" for relation in relations]
        if geometry.is_next_to(target, anchor) and all(geometry.is_far_from(other, anchor) for other in others):
            yield [f"the {name} next to the {anchor.name}"]
