"""The PNG files of Pascal VOC: which pixels belong to which object, and to which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .... import images
from ...errors import BadRowError, join_names
from ...fields import read_mask
from .files import read_lines

VOID = 255
_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Names of VOC2012 that are two words.
WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
_LABELMAP = "labelmap.txt"
_SAME_BOX = 0.8  # intersection over union
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]


class InstanceMasks:
    """The pixels of each object of an image.

    Args:
        file: a PNG whose values are the numbers of the objects, from 1: as palette indices, gray values, or the colors
            of VOC's palette.
        boxes: the box of each object, (x1, y1, x2, y2) in pixels, or None.
    """

    def __init__(self, file: Path, boxes: Sequence[Box | None] = ()) -> None:
        self.file, self.boxes = file, boxes

    @cached_property  # one image at a time is read, and has several objects
    def values(self) -> np.ndarray:
        """The number of the object of each pixel, an array (H, W).

        Raises:
            BadRowError: the file is no such PNG.
        """
        image = _opened(self.file)
        if image.mode in ("1", "P", "L", "I;16", "I"):
            return np.asarray(image)
        colors = np.asarray(image.convert("RGB")).astype(np.int32) @ (1 << 16, 1 << 8, 1)
        palette = _palette()
        known = np.sort(palette)
        unknown = ~np.isin(colors, known)
        if unknown.any():
            raise BadRowError(
                f"{self.file}: expected palette indices, or the colors of VOC's palette, got the color "
                f"#{colors[unknown][0]:06x}; save the masks with a palette",
                "mask_malformed",
            )
        return np.argsort(palette)[np.searchsorted(known, colors)]

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of the objects that have pixels; errors as for `values`."""
        return [int(number) for number in np.unique(self.values) if number not in (0, VOID)]

    @cached_property
    def order(self) -> dict[int, int]:
        """The value of each object in the PNG: its number, unless all boxes fit masks in another order.

        Datumaro, and so CVAT, numbers the masks independently of the objects in the XML file.
        """
        extents = {value: _extent(self.values == value) for value in self.numbers}
        found = {}
        for number, box in enumerate(self.boxes, start=1):
            value = max(extents, key=lambda value: _overlap(box, extents[value]), default=0)
            if not value or _overlap(box, extents[value]) < _SAME_BOX:
                return {}
            found[number] = value
        return found if len(set(found.values())) == len(found) else {}

    def mask(self, number: int, where: str, height: int, width: int) -> dict[str, Any]:
        """Return the mask of an object as compressed RLE.

        Args:
            number: number of the object.
            where: prefix of error messages.
            height, width: size of the image in pixels.

        Raises:
            BadRowError: the PNG is invalid, has another size, or no pixels of the object.
        """
        value = self.order.get(number, number)
        if value not in self.numbers and self.values.shape == (height, width):
            raise BadRowError(
                f"{where}: expected pixels of the value {value} in {self.file}, got the values "
                f"{join_names(map(str, self.numbers[:10]))}; add its mask, or remove the object",
                "mask_empty",
            )
        box = self.boxes[number - 1] if number <= len(self.boxes) else None
        if box is not None and value in self.numbers and not _overlap(box, _extent(self.values == value)):
            raise BadRowError(
                f"{where}: expected the value {value} in {self.file} within its <bndbox>, got it elsewhere; number "
                "the masks in the order of the objects",
                "mask_malformed",
            )
        return read_mask(self.values == value, height, width, f"{where}: {self.file}")

    def labels(self, file: Path, names: Mapping[Color, str]) -> dict[int, str | BadRowError | None]:
        """Return the class of each object: that of most of its pixels.

        Args:
            file: the PNG with the classes; objects have no class if it does not exist.
            names: name of each class, keyed by its color.
        """
        if not file.is_file():
            return dict.fromkeys(self.numbers)
        colors = np.asarray(_opened(file).convert("RGB"))
        if colors.shape[:2] != self.values.shape:
            raise BadRowError(
                f"{file}: expected classes of the size of {self.file}, {self.values.shape}, got {colors.shape[:2]}; "
                "export them again",
                "mask_malformed",
            )
        found: dict[int, str | BadRowError | None] = {}
        for number in self.numbers:
            used, counts = np.unique(colors[self.values == number], axis=0, return_counts=True)
            red, green, blue = map(int, used[counts.argmax()])
            found[number] = names.get((red, green, blue)) or BadRowError(
                f"{file}: object {number}: expected the color of a class, got {red},{green},{blue}; add it to "
                f"{_LABELMAP}"
            )
        return found


def _extent(mask: np.ndarray) -> Box:
    """Return the box (x1, y1, x2, y2) around the foreground of a mask (H, W)."""
    y, x = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


def _overlap(first: Box | None, second: Box) -> float:
    """Return the intersection over union of two boxes, 0 without the first."""
    if first is None:
        return 0.0
    width, height = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (areas - shared) if shared else 0.0


def class_colors(folder: Path) -> dict[Color, str]:
    """Return the name of each class, keyed by its color: those of labelmap.txt in a folder, or those of VOC2012.

    Raises:
        ValueError: labelmap.txt is invalid.
    """
    file = folder / _LABELMAP
    if not file.is_file():
        return {_color(int(_palette()[index])): WORDS.get(name, name) for index, name in enumerate(_NAMES, start=1)}
    lines = [line for _, line in read_lines(file) if not line.startswith("#")]
    names: dict[Color, str] = {}
    for index, line in enumerate(lines):
        name, _, rest = line.partition(":")
        color = rest.partition(":")[0]
        try:  # Datumaro leaves out the colors if they are those of VOC's palette
            red, green, blue = map(int, color.split(",")) if color else _color(int(_palette()[index % 256]))
        except ValueError:
            raise ValueError(
                f"{file}: expected name:red,green,blue:: in each line, got {line!a:.60}; fix it"
            ) from None
        names[red, green, blue] = WORDS.get(name, name)
    return names


def _opened(file: Path) -> Any:
    try:
        return images.open_image(file)
    except (OSError, ValueError) as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None


@cache
def _palette() -> np.ndarray:
    """Return VOC's colors as numbers 0xRRGGBB, an int64 array (256,): bits of an index alternate between channels."""
    colors = np.zeros((256, 3), np.int64)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (index >> channel & 1) << (7 - bit)
        index = index >> 3
    return colors @ (1 << 16, 1 << 8, 1)


def _color(number: int) -> Color:
    return number >> 16, number >> 8 & 255, number & 255
