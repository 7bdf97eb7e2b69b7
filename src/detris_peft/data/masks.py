"""Masks are kept as COCO run lengths (RLE) and decoded lazily: about 200 bytes per mask instead of 300,000.

A mask is `{"size": [H, W], "counts": str}` in pycocotools' compressed format; H and W in pixels. All input is checked
before it is passed to pycocotools, which returns uninitialized memory for run lengths that do not fill the image, and
allocates gigabytes for a polygon far outside the frame.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from ..images import max_pixels
from .errors import BadRowError, short

# Maximum distance of a vertex from the frame, in image sides: pycocotools traces every edge pixel by pixel.
MAX_OVERHANG = 10
# Maximum perimeter of one polygon in pixels: pycocotools needs about 100 bytes for each.
MAX_PERIMETER = 4_000_000


def encode_mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Encode a COCO segmentation or an array as one compressed RLE; several parts are merged into their union.

    Args:
        segmentation: a list of polygons `[x1, y1, x2, y2, ...]` (pixels, x to the right, y down), one RLE as a
            mapping with `size` and `counts` (a list of run lengths, or the compressed string), a list of such RLEs
            (used by RefCLEF), or an array (H, W) whose non-zero elements are foreground.
        height, width: size of the image in pixels.

    Returns:
        The RLE as a dict with `size` (`[H, W]`) and `counts` (str). It may have no foreground; see `mask_area`.

    Raises:
        BadRowError: the segmentation is empty (`mask_empty`), malformed, or created for a different image
            size (`mask_malformed`).
    """
    if isinstance(segmentation, np.ndarray):
        _check_size(segmentation.shape, height, width)
        rle: Any = coco.encode(np.asfortranarray(segmentation != 0, dtype=np.uint8))
    elif isinstance(segmentation, Mapping):
        rle = _checked_rle(segmentation, height, width)
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)) and segmentation:
        if all(isinstance(part, Mapping) for part in segmentation):
            rle = coco.merge([_checked_rle(part, height, width) for part in segmentation])
        else:
            rle = _rasterize(segmentation, height, width)
    else:
        kind = "mask_empty" if segmentation == [] else "mask_malformed"
        raise BadRowError(
            f"expected polygons or an RLE as the segmentation, got {short(segmentation, 40)}; annotate the target",
            kind,
        )
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_mask(mask: Mapping[str, Any]) -> np.ndarray:
    """Decode the `mask` of a row into a uint8 array (H, W), 1 for the target and 0 elsewhere.

    Raises:
        BadRowError: the run lengths do not fill the image.
    """
    size = mask["size"]
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise _malformed(f"expected a mask with a size [height, width], got {short(size, 40)}; fix the size")
    height, width = size
    runs = _checked_runs(mask, height, width)
    inside = np.zeros(len(runs), dtype=np.uint8)
    inside[1::2] = 1
    # Same result as pycocotools' decoder in a tenth of the time. The transpose makes the result row-major.
    return cv2.transpose(np.repeat(inside, runs).reshape(width, height))


def mask_area(mask: Mapping[str, Any]) -> int:
    """Return the number of foreground pixels of a mask from `encode_mask`."""
    rle: Any = {"size": mask["size"], "counts": mask["counts"].encode("ascii")}
    return int(coco.area(rle))


def unite_masks(masks: Sequence[Mapping[str, Any]], height: int, width: int) -> dict[str, Any]:
    """Return the union of masks from `encode_mask`; for an empty list, a mask (H, W) without foreground."""
    if not masks:
        return encode_mask({"size": [height, width], "counts": [height * width]}, height, width)
    parts: Any = [{"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in masks]
    union: Any = coco.merge(parts)
    return {"size": [height, width], "counts": union["counts"].decode("ascii")}


def outside_frame(segmentation: Any, height: int, width: int) -> bool:
    """Return whether every polygon of a segmentation that `encode_mask` accepted is entirely outside the image."""
    if not isinstance(segmentation, Sequence) or not all(isinstance(part, Sequence) for part in segmentation):
        return False
    sides = [(polygon[::2], polygon[1::2]) for polygon in segmentation if polygon]
    return all(max(x) <= 0 or max(y) <= 0 or min(x) >= width or min(y) >= height for x, y in sides)


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Return the int64 run lengths of a compressed RLE: background first, then alternating, in column-major order.

    A number is a sequence of 5-bit digits, least significant first, each stored in one character starting at "0". Bit
    0x20 means that more digits follow; bit 0x10 of the last digit is the sign. From the fourth number on,
    the difference to the number two positions earlier is stored.

    Raises:
        BadRowError: the last number is truncated, or a number has more digits than any image requires.
    """
    digits = (
        np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    )
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise _malformed("expected a complete RLE, got one that ends within a number; download the annotations again")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # up to 2³⁴ pixels, so that sums do not overflow int64
        raise _malformed(
            f"expected run lengths of at most 7 digits in the RLE, got {lengths.max()}; download the annotations again"
        )
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts) - (digits[ends] & 16 > 0) * (1 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _checked_rle(rle: Mapping[str, Any], height: int, width: int) -> Any:
    """Return pycocotools' form of an RLE after checking that it fills an image of this size exactly."""
    runs, counts = _checked_runs(rle, height, width), rle["counts"]
    if isinstance(counts, list):
        plain: Any = {"size": [height, width], "counts": runs.tolist()}
        return coco.frPyObjects(plain, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _checked_runs(rle: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Return the run lengths of a plain or compressed RLE after checking that they fill the image exactly."""
    if "size" not in rle or "counts" not in rle:
        raise _malformed(f"expected an RLE with 'size' and 'counts', got {sorted(map(str, rle))}; add them")
    _check_size(rle["size"], height, width)
    counts, area = rle["counts"], height * width
    if isinstance(counts, (str, bytes)):
        runs = run_lengths(counts)
        fits = 0 <= runs.min() <= runs.max() <= area  # so that their sum cannot overflow
    elif isinstance(counts, list):
        fits = all(isinstance(run, int) and 0 <= run <= area for run in counts)
        runs = np.array(counts if fits else [], dtype=np.int64)
    else:
        raise _malformed(
            f"expected a string or a list of run lengths as the RLE's counts, got {short(counts, 40)}; fix them"
        )
    if not fits or runs.sum() != area:
        raise _malformed(
            f"expected integer run lengths that add up to height x width = {area}, got negative, truncated or damaged "
            "ones; download the annotations again"
        )
    return runs


def as_integer(value: Any) -> Any:
    """Return an integer for one that was written as 3.0 or "3"; any other value is returned unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdecimal():
        return int(value)
    return value


def _check_size(size: Any, height: int, width: int) -> None:
    found = [as_integer(side) for side in size] if isinstance(size, Iterable) and not isinstance(size, str) else size
    if found != [height, width]:
        swapped = " with height and width swapped" if found == [width, height] else ""
        raise _malformed(
            f"expected a mask of the image's size [height, width] = {[height, width]}, got {short(found, 40)}"
            f"{swapped}; fix one of the two"
        )
    _check_pixels(height, width)


def _check_pixels(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > max_pixels():
        raise _malformed(
            f"expected a mask of 1 to {max_pixels():,} pixels, got the size [height, width] = {[height, width]}; fix "
            "the size"
        )


def _rasterize(polygons: Sequence[Any], height: int, width: int) -> Any:
    _check_pixels(height, width)
    outlines = []
    for polygon in polygons:
        check_polygon(polygon, height, width)
        # One or two points have no area, and pycocotools would read two points as a box.
        if len(polygon) >= 6:
            outlines.append(polygon)
    if not outlines:
        raise BadRowError("expected a polygon of three points or more, got none; fix the segmentation", "mask_empty")
    return coco.merge(coco.frPyObjects(outlines, height, width))


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Check that a flat polygon `[x1, y1, x2, y2, ...]` can be drawn on an image (height, width) in bounded time.

    Raises:
        BadRowError: it is no list of pairs of finite numbers, is far outside the image, or has a huge perimeter.
    """
    limit = MAX_OVERHANG * max(height, width)
    if not isinstance(polygon, Sequence) or isinstance(polygon, (str, bytes)) or len(polygon) % 2:
        raise _malformed(
            "expected a polygon x1, y1, x2, y2, ... of an even number of coordinates, got "
            f"{short(polygon, 40)}; fix the polygon"
        )
    if not all_finite(polygon) or (polygon and not -limit <= min(polygon) <= max(polygon) <= limit):
        raise _malformed(
            f"expected numbers as polygon coordinates within {limit} pixels, got {short(polygon, 40)}; fix them"
        )
    if polygon and _perimeter(polygon) > MAX_PERIMETER:
        raise _malformed(
            f"expected a polygon with a perimeter of at most {MAX_PERIMETER:,} pixels, got {len(polygon) // 2:,} "
            "points with a longer one; simplify it"
        )


def _perimeter(polygon: Sequence[float]) -> float:
    """Return the length of a closed polygon, as the sum of each edge's longer side; an upper bound if it is short."""
    bound = len(polygon) * (max(polygon) - min(polygon))
    if bound <= MAX_PERIMETER:
        return bound
    points = np.reshape(np.array(polygon, dtype=np.float64), (-1, 2))
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def all_finite(values: Sequence[Any]) -> bool:
    """Return whether all values are finite numbers."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # text, None, a list, ...; an integer that no float can hold
        return False


def _malformed(message: str) -> BadRowError:
    return BadRowError(message, "mask_malformed")
