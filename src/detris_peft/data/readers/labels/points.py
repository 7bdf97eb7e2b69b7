"""Vertices of polygons that are drawn with a library other than pycocotools, as a dataset's authors do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import BadRowError, short
from ...masks import check_polygon


def read_points(points: Any, height: int, width: int, where: str) -> np.ndarray:
    """Return the vertices of a polygon as int32 (N, 2) with x and y in pixels, truncated towards zero.

    Args:
        points: `[[x, y], ...]`; may be empty.
        height, width: size of the image in pixels; the vertices must not be far outside.
        where: prefix of the error message.

    Raises:
        BadRowError: the value is not a list of points, or the polygon is too large to draw.
    """
    if not _is_list(points) or not all(_is_list(point) and len(point) == 2 for point in points):
        raise BadRowError(
            f"{where}: expected points [[x, y], ...] in pixels, got {short(points)}; fix them", "mask_malformed"
        )
    try:
        check_polygon([number for point in points for number in point], height, width)
    except BadRowError as error:
        raise BadRowError(f"{where}: {error}", error.kind) from None
    return np.array(points, np.float64).reshape(-1, 2).astype(np.int32)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
