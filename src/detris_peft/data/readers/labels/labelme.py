"""Reader for LabelMe, and for tools that save the same files, such as X-AnyLabeling.

<folder>/0001.jpg         the images may also be in another folder, which "imagePath" names
<folder>/0001.json        {"version": "5.5.0", "flags": {}, "imagePath": "0001.jpg", "imageData": null,
                           "imageHeight": 480, "imageWidth": 640,
                           "shapes": [{"label": "rose", "shape_type": "polygon", "group_id": null, "flags": {},
                                       "points": [[10.5, 20.0], [40.0, 22.5], [30.0, 60.0]],
                                       "description": "the left rose"}]}

Subfolders named train, val (or valid, validation) and test are splits; JSON files may be two folders deep.
Format: https://github.com/wkentaro/labelme/blob/main/labelme/_label_file.py and utils/shape.py
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ....images import decode
from ....safe_loading import read_json
from ...errors import BadRowError, notice, short
from ...fields import open_header, read_mask
from ...masks import all_finite, as_integer
from ..registry import Source, dataset_path
from .files import (
    SPLIT_FOLDERS,
    ImageFinder,
    check_once,
    files_in,
    first_json_keys,
    head_keys,
    image_finder,
    read_file_name,
)
from .objects import LabeledImage, LabeledObject
from .outlines import ellipse_outline, rectangle_outline
from .reader import LabelReader
from .shapes import Shape, notice_without_area, paste_mask, unite_shapes
from .text_fields import find_text

_MAX_DEPTH, _MAX_FOLDERS = 2, 300  # of the subfolders in which JSON files are searched
# Labels in LabelMe's examples that do not name objects: https://github.com/wkentaro/labelme/tree/main/examples
_NO_OBJECTS = ("_background_", "__ignore__")
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
# Those after "polygon" are X-AnyLabeling's.
_POLYGONS = ("oriented_rectangle", "polygon", "rotation", "quadrilateral")


class LabelMeReader(LabelReader):
    """Reads folders with one LabelMe JSON per image, and single files."""

    name = "labelme"
    title = "LabelMe"
    accepts = "a folder with LabelMe's .json files"
    options = ("image_folder",)
    text_field = "the description of each shape (LabelMe: Edit Label)"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        if path is None:
            return False
        return bool(_folders(path)) if path.is_dir() else _is_labelme(*head_keys(path))

    def splits(self, source: Source) -> Iterable[str]:
        return dict.fromkeys(split for split, _ in self._files(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return [file for _, file in self._files(source)]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        finder = image_finder(source)
        left_out: Counter[str] = Counter()
        seen: dict[Path, str] = {}
        for name, file in self._files(source):
            if name == split:
                try:
                    image = _image(file, finder, split, left_out)
                    check_once(image.file, str(file), seen)
                    yield image
                except BadRowError as error:
                    yield error
                except (OSError, ValueError) as error:
                    yield BadRowError(str(error).removesuffix("."))
        ignored = {label: left_out.pop(label) for label in _NO_OBJECTS if left_out[label]}
        notice_without_area(left_out, source.dataset)
        for label, count in ignored.items():
            notice("label_ignored", f"{source.dataset}: {count:,} shapes with the label {label} are not used")

    def _files(self, source: Source) -> list[tuple[str, Path]]:
        """Return the JSON files with their splits."""
        path = dataset_path(source)
        if path is not None and path.is_file():
            return [("train", path)]
        found = _folders(path) if path is not None else []
        if not found:
            raise FileNotFoundError(
                f"{source.dataset}: expected LabelMe's .json files, which have 'shapes' and 'imagePath', found "
                "none; pass another folder"
            )
        return [(split, file) for split, folder in found for file in files_in(folder, ".json")]


def _is_labelme(content: str, keys: frozenset[str]) -> bool:
    """Return whether a JSON file with these first keys is LabelMe's; ReasonSeg's files have "shapes" as well."""
    if content != "object" or "shapes" not in keys or "is_sentence" in keys:
        return False
    # "imagePath" follows the shapes, whose masks may be larger than what `head_keys` reads.
    return "imagePath" in keys or {"version", "flags"} <= keys


def _folders(root: Path) -> list[tuple[str, Path]]:
    """Return the folders with LabelMe files: the root and its subfolders, each with its split."""
    found = []
    for parent, folders, _ in islice(os.walk(root), _MAX_FOLDERS):
        parts = Path(parent).relative_to(root).parts
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if len(parts) < _MAX_DEPTH else []
        if any(_is_labelme(*found) for found in first_json_keys(Path(parent))):
            splits = [SPLIT_FOLDERS[part.lower()] for part in parts if part.lower() in SPLIT_FOLDERS]
            found.append((splits[0] if splits else "train", Path(parent)))
    return found


def _image(file: Path, finder: ImageFinder, split: str, left_out: Counter[str]) -> LabeledImage:
    """Return the image of a file; the labels and types of shapes that are not used are added to `left_out`."""
    content = read_json(file)
    if not isinstance(content, Mapping) or not isinstance(content.get("shapes"), list):
        found = f"the fields {', '.join(map(str, content))}" if isinstance(content, Mapping) else short(content)
        raise BadRowError(f"{file}: expected LabelMe JSON with a list of 'shapes', got {found:.80}; move other files")
    name = read_file_name(content.get("imagePath"), f"{file}: 'imagePath'")
    image = finder.find(name, near=file.parent)
    data = None if os.path.isfile(image) else _image_data(content.get("imageData"), f"{file}: 'imageData'")
    name = finder.relative(image)
    shapes = [_shape(shape, f"{file}: shapes[{number}]") for number, shape in enumerate(content["shapes"])]
    left_out.update(shape for shape in shapes if isinstance(shape, str))
    objects: list[LabeledObject | BadRowError] = unite_shapes(
        (None if isinstance(shape, str) else shape for shape in shapes), name
    )
    return LabeledImage(str(file), image, name, finder.folder, split, objects, data=data, size=_size(content, file))


def _image_data(data: Any, where: str) -> bytes | None:
    """Return the image that a file contains, or None if it contains none."""
    if not data:
        return None
    return _from_base64(data, where, "image_damaged")


def _from_base64(data: Any, where: str, kind: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError):
        raise BadRowError(f"{where}: expected base64 text, got {short(data, 40)}; save the file again", kind) from None


def _size(content: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Return height and width as the file declares them, or None if it does not."""
    values = [content.get(name) for name in ("imageHeight", "imageWidth")]
    if values == [None, None]:
        return None
    height, width = map(as_integer, values)
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width)):
        raise BadRowError(
            f"{file}: expected integers as 'imageHeight' and 'imageWidth', got {short(values)}; fix them"
        )
    return height, width


def _shape(shape: Any, where: str) -> Shape | BadRowError | str:
    """Return a shape; its error; or its type or label if it is left out because of it."""
    try:
        return _read_shape(shape, where)
    except BadRowError as error:
        return error


def _read_shape(shape: Any, where: str) -> Shape | str:
    if not isinstance(shape, Mapping):
        raise BadRowError(f"{where}: expected an object with 'label' and 'points', got {short(shape)}; fix it")
    label, kind, group = shape.get("label"), shape.get("shape_type"), shape.get("group_id")
    if label is not None and not isinstance(label, str):
        raise BadRowError(f"{where}: expected text as 'label', got {short(label)}; fix it")
    if label in _NO_OBJECTS:
        return str(label)
    if kind in _WITHOUT_AREA:
        return str(kind)
    if group is not None and (isinstance(group, bool) or not isinstance(group, (int, str))):
        raise BadRowError(f"{where}: expected an integer or null as 'group_id', got {short(group)}; fix it")
    more = shape.get("attributes")  # X-AnyLabeling's
    found = find_text(shape) or (find_text(more) if isinstance(more, Mapping) else None)
    return Shape(
        where,
        partial(_mask, shape, where),
        label=label or None,
        sentences=found and found[1],
        text_field=found[0] if found else "description",
        group=None if group is None else (label, group),
    )


def _points(points: Any, where: str) -> list[float]:
    """Return points as a flat list x1, y1, x2, y2, ..."""
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise BadRowError(
            f"{where}: expected a list of points [x, y], got {short(points)}; fix them", "mask_malformed"
        )
    numbers = [number for point in points for number in point]
    if not all_finite(numbers):
        raise BadRowError(
            f"{where}: expected points of finite numbers, got {short(points)}; fix them", "mask_malformed"
        )
    return numbers


def _mask(shape: Mapping[str, Any], where: str, height: int, width: int) -> Mapping[str, Any]:
    kind = "polygon" if shape.get("shape_type") is None else shape["shape_type"]
    points = _points(shape.get("points"), f"{where}: 'points'")
    counts = {"rectangle": (2, 4), "circle": (2,), "mask": (2,)}.get(kind) if isinstance(kind, str) else None
    if counts is not None and len(points) // 2 not in counts:
        raise BadRowError(
            f"{where}: 'points': expected {' or '.join(map(str, counts))} points of a {kind}, got {len(points) // 2}; "
            "draw it again",
            "mask_malformed",
        )
    if kind == "mask":
        return _cropped_mask(shape.get("mask"), points, f"{where}: 'mask'", height, width)
    if kind == "circle":  # center, and a point on the circle
        x, y, on_x, on_y = points
        radius = float(np.hypot(on_x - x, on_y - y))
        outline = ellipse_outline(x, y, radius, radius)
    elif kind == "rectangle" and len(points) == 4:  # two opposite corners; X-AnyLabeling saves all four
        x, y, x2, y2 = points
        outline = rectangle_outline(x, y, x2 - x, y2 - y)
    elif kind == "rectangle" or kind in _POLYGONS:
        outline = points
    else:
        known = ", ".join(("rectangle", "circle", "mask", *_POLYGONS, *_WITHOUT_AREA))
        raise BadRowError(f"{where}: expected one of {known} as 'shape_type', got {short(kind)}; draw a polygon")
    return read_mask([outline], height, width, f"{where}: 'points'")


def _cropped_mask(data: Any, points: list[float], where: str, height: int, width: int) -> Mapping[str, Any]:
    """Return a mask that is stored as the image of its box, whose last row and column are included."""
    png = {"bytes": _from_base64(data, where, "mask_malformed") or None, "path": None}
    try:
        with open_header(png, where, any_depth=True) as header:
            pixels = np.asarray(decode(header, where)) != 0
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None
    left, top, right, bottom = (int(number) for number in points)
    expected = (bottom - top + 1, right - left + 1)
    if pixels.shape != expected:
        raise BadRowError(
            f"{where}: expected a gray image of the box's {expected[1]}x{expected[0]} pixels, got one of "
            f"{header.width}x{header.height} in mode {header.mode}; draw the mask again",
            "mask_malformed",
        )
    return paste_mask(pixels, left, top, where, height, width)
