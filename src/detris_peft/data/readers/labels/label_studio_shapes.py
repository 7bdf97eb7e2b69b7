"""The shapes of Label Studio's regions, and their masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import BadRowError, short
from ...fields import read_mask
from ...masks import all_finite
from .label_studio_brush import decode_bitmask, decode_brush
from .outlines import ellipse_outline, rectangle_outline

_POLYGON, _RECTANGLE, _ELLIPSE, _BRUSH, _BITMASK = "polygon", "rectangle", "ellipse", "brush", "bitmask"
# The fields that draw a region of each kind.
GEOMETRY = {
    _POLYGON: ("points",),
    _ELLIPSE: ("x", "y", "radiusX", "radiusY"),
    _BRUSH: ("rle",),
    _BITMASK: ("imageDataURL",),
    _RECTANGLE: ("x", "y", "width", "height"),
}
WITHOUT_AREA = ("keypoint", "vector")


def shape_kind(result: Mapping[str, Any]) -> str | None:
    """Return the kind of shape of a result, or None if it is not a shape."""
    name = str(result.get("type")).lower()
    if name == "labels":
        value = result.get("value")
        return next(
            (kind for kind, keys in GEOMETRY.items() if isinstance(value, Mapping) and keys[-1] in value), None
        )
    name = name.removesuffix("labels")
    return name if name in GEOMETRY or name in WITHOUT_AREA else None


def draw_shape(kind: str, shape: Mapping[str, Any], where: str, height: int, width: int) -> dict[str, Any]:
    """Return the mask of a region as compressed RLE.

    Args:
        kind, shape: what to draw; coordinates in percent of the image.
        where: prefix of error messages.
        height, width: size of the upright image in pixels.
    """
    where = f"{where}: '{GEOMETRY[kind][-1] if len(GEOMETRY[kind]) == 1 else kind}'"
    if kind == _BRUSH:
        return read_mask(decode_brush(shape["rle"], height, width, where), height, width, where)
    if kind == _BITMASK:
        return read_mask(decode_bitmask(shape["imageDataURL"], where), height, width, where)
    if kind == _POLYGON:
        points = shape["points"]
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise _malformed(where, "points [[x, y], ...]", points)
        numbers = [number for point in points for number in point]
    else:
        numbers = [shape[name] for name in GEOMETRY[kind]] + [shape["rotation"] or 0]
    if not all_finite(numbers):
        raise _malformed(where, "finite numbers", numbers)
    if kind != _POLYGON:
        x, y, *sides = (number * side / 100 for number, side in zip(numbers, (width, height) * 2, strict=False))
        if kind == _RECTANGLE:
            outline = rectangle_outline(x, y, *sides, degrees=numbers[-1], pivot=(x, y))
        else:
            outline = ellipse_outline(x, y, *sides, degrees=numbers[-1])
        return read_mask([outline], height, width, where)
    outline = [number * (height if index % 2 else width) / 100 for index, number in enumerate(numbers)]
    return read_mask([outline], height, width, where)


def _malformed(where: str, expected: str, got: Any) -> BadRowError:
    return BadRowError(f"{where}: expected {expected}, got {short(got)}; fix the region", "mask_malformed")
