"""Outlines of shapes that labeling tools store by a few numbers, as polygons [x1, y1, x2, y2, ...]."""

from __future__ import annotations

import math

# Maximum distance of the polygon of an ellipse from the ellipse, in pixels.
_TOLERANCE = 0.05
_MAX_POINTS = 2000


def rectangle_outline(
    x: float, y: float, width: float, height: float, degrees: float = 0.0, pivot: tuple[float, float] | None = None
) -> list[float]:
    """Return the outline of a rectangle.

    Args:
        x, y: the corner at the top left before the rotation, in pixels.
        width, height: in pixels.
        degrees: clockwise rotation, as y points down.
        pivot: the point around which it is rotated; by default its center.
    """
    px, py = pivot or (x + width / 2, y + height / 2)
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    return _rotated([(a - px, b - py) for a, b in corners], px, py, degrees)


def ellipse_outline(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> list[float]:
    """Return the outline of an ellipse, to a twentieth of a pixel.

    Args:
        x, y: its center, in pixels.
        radius_x, radius_y: in pixels.
        degrees: clockwise rotation around the center, as y points down.
    """
    radius = max(abs(radius_x), abs(radius_y))
    count = _MAX_POINTS
    if radius < _MAX_POINTS**2:  # False for NaN
        count = min(max(math.ceil(math.pi * math.sqrt(radius / (2 * _TOLERANCE))), 12), _MAX_POINTS)
    angles = (2 * math.pi * index / count for index in range(count))
    return _rotated([(radius_x * math.cos(a), radius_y * math.sin(a)) for a in angles], x, y, degrees)


def _rotated(points: list[tuple[float, float]], x: float, y: float, degrees: float) -> list[float]:
    """Return points around (0, 0) as a flat polygon around (x, y), rotated clockwise."""
    if not degrees:
        return [number for a, b in points for number in (x + a, y + b)]
    angle = math.radians(degrees)
    cosine, sine = (math.cos(angle), math.sin(angle)) if math.isfinite(angle) else (math.nan, math.nan)
    return [number for a, b in points for number in (x + a * cosine - b * sine, y + a * sine + b * cosine)]
