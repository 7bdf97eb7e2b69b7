"""Masks stay COCO run lengths (RLE) until somebody needs pixels: about 200 bytes instead of 300,000.

A mask is `{"size": [H, W], "counts": str}`, compressed as pycocotools does it; H and W in pixels. Whatever reaches
pycocotools is checked first: it answers run lengths that do not fill the image with uninitialized memory, and a
polygon far out of the frame with gigabytes of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from .errors import BadRowError

# How far a corner may lie outside the frame, in image sides: pycocotools walks along every edge pixel by pixel.
MAX_OVERHANG = 10


def encode_mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Any COCO segmentation, or an array, as one compressed RLE; several parts become their union.

    Args:
        segmentation: a list of polygons `[x1, y1, x2, y2, ...]` (pixels, x to the right, y down), one RLE as a
            mapping with `size` and `counts` (a list of run lengths, or the compressed string), a list of such RLEs
            (as RefCLEF has them), or an array (H, W) whose non-zero elements are foreground.
        height, width: the image's H and W in pixels.

    Returns:
        `{"size": [H, W], "counts": str}`. It may have no foreground: see `mask_area`.

    Raises:
        BadRowError: the segmentation is empty (`mask_empty`), malformed, or made for another image size
            (`mask_malformed`).
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
            rle = _rasterise(segmentation, height, width)
    else:
        kind = "mask_empty" if segmentation == [] else "mask_malformed"
        raise BadRowError(
            f"the segmentation is {segmentation!r:.40}: it must be polygons or an RLE that is not empty", kind
        )
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_mask(mask: Mapping[str, Any]) -> np.ndarray:
    """A row's `mask` as an array (H, W) of uint8, 1 where the target is and 0 elsewhere.

    Raises:
        BadRowError: the run lengths do not fill the image.
    """
    height, width = mask["size"]
    runs = _checked_runs(mask, height, width)
    inside = np.zeros(len(runs), dtype=np.uint8)
    inside[1::2] = 1
    # As pycocotools would, in a tenth of its time; the rows of pixels then lie one behind the other.
    return cv2.transpose(np.repeat(inside, runs).reshape(width, height))


def mask_area(mask: Mapping[str, Any]) -> int:
    """Number of foreground pixels of a mask made by `encode_mask`."""
    rle: Any = {"size": mask["size"], "counts": mask["counts"].encode("ascii")}
    return int(coco.area(rle))


def unite_masks(masks: Sequence[Mapping[str, Any]], height: int, width: int) -> dict[str, Any]:
    """The union of masks made by `encode_mask` for a image of H x W pixels; of none, a mask without foreground."""
    if not masks:
        return encode_mask({"size": [height, width], "counts": [height * width]}, height, width)
    parts: Any = [{"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in masks]
    union: Any = coco.merge(parts)
    return {"size": [height, width], "counts": union["counts"].decode("ascii")}


def outside_frame(segmentation: Any, height: int, width: int) -> bool:
    """Whether every polygon of a segmentation that `encode_mask` took lies wholly beside the image."""
    if not isinstance(segmentation, Sequence) or not all(isinstance(part, Sequence) for part in segmentation):
        return False
    sides = [(polygon[::2], polygon[1::2]) for polygon in segmentation if polygon]
    return all(max(x) <= 0 or max(y) <= 0 or min(x) >= width or min(y) >= height for x, y in sides)


def run_lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths in a compressed RLE, int64: background first, then alternating, column after column.

    A number is a row of 5-bit digits, lowest first, each in one character from "0" on; 32 marks that more follow,
    16 in the last digit is the sign. From the fourth number on, the difference to the last but one is stored.

    Raises:
        BadRowError: the last number is cut short, or a number has more digits than any image needs.
    """
    digits = (
        np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    )
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise _malformed("the RLE ends within a number: it is cut, take the annotation anew from its source")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 2³⁴ pixels; sums of such numbers stay far from what 64 bits hold
        raise _malformed(f"a run length in the RLE has {lengths.max()} digits: it is damaged, take it anew")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts) - (digits[ends] & 16 > 0) * (1 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _checked_rle(rle: Mapping[str, Any], height: int, width: int) -> Any:
    """pycocotools' own form of an RLE, after making sure that it fills a image of this size exactly."""
    runs, counts = _checked_runs(rle, height, width), rle["counts"]
    if isinstance(counts, list):
        plain: Any = {"size": [height, width], "counts": runs.tolist()}
        return coco.frPyObjects(plain, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _checked_runs(rle: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """The run lengths of an RLE, plain or compressed, which fill a image of this size exactly."""
    if "size" not in rle or "counts" not in rle:
        raise _malformed(f"the RLE has the fields {sorted(map(str, rle))}: it needs 'size' and 'counts'")
    _check_size(rle["size"], height, width)
    counts, area = rle["counts"], height * width
    if isinstance(counts, (str, bytes)):
        runs = run_lengths(counts)
        fits = 0 <= runs.min() <= runs.max() <= area  # so that their sum cannot run over
    elif isinstance(counts, list):
        fits = all(isinstance(run, int) and 0 <= run <= area for run in counts)
        runs = np.array(counts if fits else [], dtype=np.int64)
    else:
        raise _malformed(f"the RLE's counts are {counts!r:.40}: they must be a string or a list of run lengths")
    if not fits or runs.sum() != area:
        raise _malformed(
            f"the RLE's run lengths are negative or do not add up to height x width = {area}: it is cut or "
            "damaged, take the annotation anew from its source"
        )
    return runs


def _check_size(size: Any, height: int, width: int) -> None:
    if not isinstance(size, Iterable) or list(size) != [height, width]:
        raise _malformed(f"the mask's size [height, width] is {size!s:.40}, the image's {[height, width]}: mend one")
    if height < 1 or width < 1:
        raise _malformed(f"the mask's size [height, width] is {[height, width]}: it has no pixels")


def _rasterise(polygons: Sequence[Any], height: int, width: int) -> Any:
    limit = MAX_OVERHANG * max(height, width)
    outlines = []
    for polygon in polygons:
        if not isinstance(polygon, Sequence) or isinstance(polygon, (str, bytes)) or len(polygon) % 2:
            raise _malformed("a polygon must be a list x1, y1, x2, y2, ... of an even number of coordinates")
        if not _all_numbers(polygon) or (polygon and not -limit <= min(polygon) <= max(polygon) <= limit):
            raise _malformed(f"a polygon has a coordinate that is no number or lies beyond {limit} pixels: mend it")
        # One or two points enclose nothing, and pycocotools would take two for a box.
        if len(polygon) >= 6:
            outlines.append(polygon)
    if not outlines:
        raise BadRowError("the segmentation is empty: no polygon has three points or more", "mask_empty")
    return coco.merge(coco.frPyObjects(outlines, height, width))


def _all_numbers(values: Sequence[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except TypeError:  # text, None, a list, ...
        return False


def _malformed(message: str) -> BadRowError:
    return BadRowError(message, "mask_malformed")
