"""Clear spatial relations between objects, with margins so that people agree on them.

Every direction is handled in the same way: a position "along" a direction grows towards it. All lengths are shares of
the image's width (left, right) or height (top, bottom).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .objects import SceneObject

OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
# Minimum distance between the centers of two objects, to say which one is farther left.
GAP = {"left": 0.08, "right": 0.08, "top": 0.12, "bottom": 0.12}
# Minimum distance of a center from the middle of the image, to be on a side of it.
SIDE = {"left": 0.16, "right": 0.16, "top": 0.18, "bottom": 0.18}
# Minimum distance of the others from the middle, on the other side.
OTHER_SIDE = 0.04
# An object that is longer than this is on both sides.
LONGEST = 0.6
# Maximum distance of a center from the middle of the image, to be in the middle: in width and in height.
MIDDLE, MIDDLE_HEIGHT = 0.09, 0.2
# Maximum distance between an object and its anchor, and by how much their boxes may overlap.
REACH = {"left": 0.3, "right": 0.3, "top": 0.15, "bottom": 0.15}
OVERLAP = 0.02
# Minimum share of the shorter of two extents that must overlap the other, to be in one row or column.
ALIGNED = 0.5
# "Next to": maximum distance, minimum distance of the others, and maximum difference of the lower edges.
NEAR, FAR, SAME_GROUND = 0.04, 0.2, 0.06
# Maximum ratio of the areas of objects that people count in one row.
ROW_RATIO = 4.0
# Minimum ratio of the areas of two objects, to say which one is larger.
SIZE_RATIO = 2.0


def is_farther(first: SceneObject, second: SceneObject, side: str) -> bool:
    """Return whether the first of two objects is clearly farther to a side, by its center and by its outer edge."""
    return _low(first, side) >= _high(second, side) + GAP[side] and _edge(first, side) >= _edge(second, side)


def is_on_side(target: SceneObject, side: str) -> bool:
    """Return whether an object is clearly on this side of the image."""
    return _low(target, side) >= _middle(side) + SIDE[side] and _length(target, side) <= LONGEST


def is_off_side(other: SceneObject, side: str) -> bool:
    """Return whether an object is clearly not on this side of the image."""
    return _high(other, side) <= _middle(side) - OTHER_SIDE


def is_in_middle(target: SceneObject) -> bool:
    """Return whether an object is clearly in the middle of the image, and narrow enough not to reach its sides."""
    return (
        all(abs(x - 0.5) <= MIDDLE for x in target.center_x)
        and all(abs(y - 0.5) <= MIDDLE_HEIGHT for y in target.center_y)
        and _length(target, "left") <= LONGEST / 2
    )


def is_off_middle(other: SceneObject) -> bool:
    """Return whether an object is clearly farther from the middle of the image than one that is in the middle."""
    return any(_low(other, side) >= _middle(side) + MIDDLE + GAP[side] for side in ("left", "right"))


def rank(target: SceneObject, group: Sequence[SceneObject], side: str) -> int | None:
    """Return the place of an object in a row or column of objects, counted from a side, from 1.

    None if the objects do not form a row in which everybody would count in the same order.
    """
    ordered = sorted(group, key=lambda item: _low(item, side), reverse=True)
    areas = [item.area for item in group]
    if max(areas) > ROW_RATIO * min(areas):
        return None
    across = "top" if side in ("left", "right") else "left"
    for first, second in pairwise(ordered):
        in_order = is_farther(first, second, side) and _edge(second, OPPOSITES[side]) >= _edge(first, OPPOSITES[side])
        if not in_order or _alignment(first, second, across) < ALIGNED:
            return None
    return 1 + next(index for index, item in enumerate(ordered) if item is target)


def is_largest(target: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Return whether an object is clearly larger than all others: in its pixels and in its box."""
    return all(
        target.area >= SIZE_RATIO * other.area and _box_area(target) >= SIZE_RATIO * _box_area(other)
        for other in others
    )


def is_smallest(target: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Return whether an object is clearly smaller than all others, and not because one of them hides it."""
    return all(is_largest(other, [target]) and not _boxes_meet(target, other) for other in others)


def is_beyond(target: SceneObject, anchor: SceneObject, side: str) -> bool:
    """Return whether an object is clearly on this side of the anchor and not far from it."""
    across = "top" if side in ("left", "right") else "left"
    distance = _distance(target, anchor, side)
    if not -OVERLAP <= distance <= REACH[side] or _alignment(target, anchor, across) < ALIGNED:
        return False
    return _low(target, side) >= _high(anchor, side) + GAP[side]


def is_not_beyond(other: SceneObject, anchor: SceneObject, side: str) -> bool:
    """Return whether an object is clearly not on this side of the anchor."""
    return _high(other, side) <= _low(anchor, side)


def is_next_to(target: SceneObject, anchor: SceneObject) -> bool:
    """Return whether two objects are side by side, close to each other and on the same ground."""
    distance = max(_distance(target, anchor, "left"), _distance(target, anchor, "right"))
    return (
        -OVERLAP <= distance <= NEAR
        and _alignment(target, anchor, "top") >= ALIGNED
        and abs(target.box[3] - anchor.box[3]) <= SAME_GROUND
    )


def is_far_from(other: SceneObject, anchor: SceneObject) -> bool:
    """Return whether two objects are clearly apart, in width or in height."""
    return max(_distance(other, anchor, side) for side in OPPOSITES) >= FAR


def _low(item: SceneObject, side: str) -> float:
    """Return the lowest position of the center along a direction, which is negative for "left" and "top"."""
    lowest, highest = item.center_x if side in ("left", "right") else item.center_y
    return lowest if side in ("right", "bottom") else -highest


def _high(item: SceneObject, side: str) -> float:
    return -_low(item, OPPOSITES[side])


def _edge(item: SceneObject, side: str) -> float:
    """Return the position of the outer edge of the box along a direction."""
    left, top, right, bottom = item.box
    return {"left": -left, "top": -top, "right": right, "bottom": bottom}[side]


def _middle(side: str) -> float:
    return 0.5 if side in ("right", "bottom") else -0.5


def _length(item: SceneObject, side: str) -> float:
    return _edge(item, side) + _edge(item, OPPOSITES[side])


def _distance(item: SceneObject, anchor: SceneObject, side: str) -> float:
    """Return by how much the nearer edge of an object is beyond the anchor's edge; negative if they overlap."""
    return -_edge(item, OPPOSITES[side]) - _edge(anchor, side)


def _alignment(first: SceneObject, second: SceneObject, side: str) -> float:
    """Return the overlap of two extents along an axis, as a share of the shorter one."""
    start = max(-_edge(first, OPPOSITES[side]), -_edge(second, OPPOSITES[side]))
    end = min(_edge(first, side), _edge(second, side))
    return (end - start) / min(_length(first, side), _length(second, side))


def _box_area(item: SceneObject) -> float:
    return _length(item, "left") * _length(item, "top")


def _boxes_meet(first: SceneObject, second: SceneObject) -> bool:
    return max(_distance(first, second, side) for side in OPPOSITES) < 0
