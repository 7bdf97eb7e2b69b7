"""Reader for "CVAT for images 1.1", the XML of CVAT (Computer Vision Annotation Tool).

<folder>/annotations.xml                several .xml files, or one folder per split that holds some, are read as well
<folder>/images/<name>                  or images/<subset>/<name>, as CVAT exports projects

<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>rose</name> ... </label></labels></task></meta>
  <image id="0" name="0001.jpg" subset="Train" width="640" height="480">
    <polygon label="rose" points="10.50,20.00;40.00,22.50;30.00,60.00" z_order="0" group_id="1">
      <attribute name="description">the left rose</attribute>
    </polygon>
    <box label="rose" xtl="1.00" ytl="2.00" xbr="9.00" ybr="8.00" rotation="30.00"></box>
    <ellipse label="rose" cx="50.00" cy="60.00" rx="9.00" ry="5.00" rotation="30.00"></ellipse>
    <mask label="rose" rle="2, 3, 4, 7" left="5" top="6" width="4" height="4"></mask>
  </image>
</annotations>

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/ and cvat/apps/dataset_manager/formats/cvat.py in
https://github.com/cvat-ai/cvat. A mask counts pixels of background and foreground in turn, row by row within its box.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ....images import max_pixels
from ....safe_loading import read_xml
from ...errors import BadRowError, short
from ...fields import read_mask
from ...masks import as_integer
from ..registry import Source, dataset_path
from .files import (
    MAX_DETECTED,
    SPLIT_FOLDERS,
    ImageFinder,
    check_once,
    files_of_splits,
    head_tags,
    image_finder,
    read_file_name,
)
from .objects import LabeledImage
from .outlines import ellipse_outline, rectangle_outline
from .reader import LabelReader
from .shapes import Shape, notice_without_area, paste_mask, read_number, unite_shapes
from .text_fields import find_text

_ROOT = "annotations"
_WITHOUT_AREA = ("cuboid", "points", "polyline", "skeleton")


class CvatReader(LabelReader):
    """Reads annotations.xml, or a folder with such files."""

    name = "cvat"
    title = "CVAT"
    accepts = "an export of CVAT as 'CVAT for images 1.1'"
    options = ("image_folder",)
    text_field = "a text attribute of each label, named description (CVAT: Constructor, Add an attribute)"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and (
            _is_cvat(path) if path.is_file() else bool(files_of_splits(path, (".xml",), _is_cvat, MAX_DETECTED))
        )

    def splits(self, source: Source) -> Iterable[str]:
        splits: dict[str, None] = {}
        for file, default in self._files(source):
            root = _read(file)
            splits.update(dict.fromkeys(_split(image, root, default) for image in root.iter("image") if len(image)))
        return splits or ["train"]

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return [file for file, _ in self._files(source)]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        finder = image_finder(source)
        seen: dict[Path, str] = {}
        counts: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        for file, default in self._files(source):
            root = _read(file)
            labels, attributes = _labels(root)
            for number, element in enumerate(root.iter("image")):
                if not len(element) or _split(element, root, default) != split:
                    continue
                where = f"{file}: image {short(element.get('name', number))}"
                try:
                    image = _find_image(element, file, finder, where)
                    if seen.get(image) != str(file):
                        check_once(image, str(file), seen)
                    name = finder.relative(image)
                    shapes = _shapes(element, where, labels, attributes)
                    objects = unite_shapes(shapes, name, first=counts[name])
                    counts[name] += len(shapes)
                    yield LabeledImage(
                        str(file), image, name, finder.folder, split, objects, size=_size(element, where)
                    )
                    left_out.update(shape.tag for shape in element if shape.tag in _WITHOUT_AREA)
                except BadRowError as error:
                    yield error
        notice_without_area(left_out, source.dataset)

    def _files(self, source: Source) -> list[tuple[Path, str]]:
        files = files_of_splits(dataset_path(source), (".xml",), _is_cvat)
        if not files:
            raise FileNotFoundError(
                f"{source.dataset}: expected CVAT's annotations.xml, found none; export the task as 'CVAT for images "
                "1.1', unzip it, and pass its folder"
            )
        return files


def _is_cvat(file: Path) -> bool:
    tags = head_tags(file)
    return tags[:1] == [_ROOT] and not {"version", "meta", "image", "track"}.isdisjoint(tags)


def _read(file: Path) -> Element:
    root = read_xml(file)
    if root.tag != _ROOT:
        raise ValueError(
            f"{file}: expected CVAT's XML with the root <{_ROOT}>, got <{root.tag:.40}>; pass another file"
        )
    if root.find("track") is not None:
        raise ValueError(
            f"{file}: expected 'CVAT for images 1.1', got 'CVAT for video 1.1', which has <track>; export the task as "
            "'CVAT for images 1.1'"
        )
    return root


def _split(image: Element, root: Element, default: str) -> str:
    """Return the split of an image: its subset, that of the task, or the default."""
    subset = (image.get("subset") or root.findtext("meta/task/subset") or "").strip()
    if subset.lower() in ("", "default"):  # "default" is CVAT's name for none
        return default
    return SPLIT_FOLDERS.get(subset.lower(), subset)


def _labels(root: Element) -> tuple[set[str], dict[tuple[str, str], str]]:
    """Return the names of the labels, and the input type of each attribute, keyed by label and attribute."""
    names, types = set(), {}
    for label in root.findall("meta//label"):
        name = label.findtext("name") or ""
        names.add(name)
        for attribute in label.iter("attribute"):
            types[name, attribute.findtext("name") or ""] = attribute.findtext("input_type") or ""
    return names, types


def _find_image(image: Element, file: Path, finder: ImageFinder, where: str) -> Path:
    name, subset = read_file_name(image.get("name"), f"{where}: 'name'"), image.get("subset") or ""
    for folder in (file.parent / "images" / subset, file.parent / "images"):
        if os.path.isfile(folder / name):
            return finder.find(name, near=folder)
    return finder.find(name, near=file.parent)


def _size(image: Element, where: str) -> tuple[int, int] | None:
    """Return height and width as the file declares them, or None if it does not."""
    values = [image.get(name) for name in ("height", "width")]
    if values == [None, None]:
        return None
    height, width = map(as_integer, values)
    if not isinstance(height, int) or not isinstance(width, int):
        raise BadRowError(f"{where}: expected integers as 'height' and 'width', got {short(values)}; fix them")
    return height, width


def _shapes(
    image: Element, where: str, labels: set[str], attributes: Mapping[tuple[str, str], str]
) -> list[Shape | BadRowError | None]:
    """Return the shapes of an image, None for those that have no area."""
    shapes: list[Shape | BadRowError | None] = []
    for number, element in enumerate(image):
        name = f"{where}: {element.tag:.40} {number}"
        try:
            shapes.append(_shape(element, name, labels, attributes))
        except BadRowError as error:
            shapes.append(error)
    return shapes


def _shape(element: Element, where: str, labels: set[str], attributes: Mapping[tuple[str, str], str]) -> Shape | None:
    if element.tag == "tag" or element.tag in _WITHOUT_AREA:  # a tag is about the entire image
        return None
    if element.tag not in _MASKS:
        known = ", ".join((*_MASKS, *_WITHOUT_AREA, "tag"))
        raise BadRowError(f"{where}: expected one of the elements {known}, got <{element.tag:.40}>; remove it")
    label: str | BadRowError | None = element.get("label") or None
    group = as_integer(element.get("group_id") or 0)
    if not isinstance(group, int):
        raise BadRowError(f"{where}: expected an integer as 'group_id', got {short(group)}; fix it")
    found = find_text(
        {
            one.get("name", ""): _value(one.text or "", attributes.get((label or "", one.get("name", ""))))
            for one in element.findall("attribute")
        }
    )
    key = None if group == 0 else (label, group)
    if label is not None and labels and label not in labels:
        known = f"{', '.join(sorted(labels)):.200}"
        label = BadRowError(
            f"{where}: expected one of the labels in <meta>, {known}, got {short(label)}; add it there"
        )
    return Shape(
        where,
        partial(_MASKS[element.tag], element, where),
        label=label,
        sentences=found and found[1],
        text_field=found[0] if found else "description",
        group=key,
    )


def _value(text: str, input_type: str | None) -> str | float:
    """Return the value of an attribute: a number if its type says so."""
    with suppress(ValueError):
        return float(text) if input_type == "number" else text
    return text


def _polygon(element: Element, where: str, height: int, width: int) -> Mapping[str, Any]:
    points = element.get("points") or ""
    try:
        pairs = [[float(number) for number in point.split(",")] for point in points.split(";")]
    except ValueError:
        pairs = []
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise BadRowError(
            f"{where}: 'points': expected 'x,y;x,y;...', got {short(points)}; draw it again", "mask_malformed"
        )
    return read_mask([[number for pair in pairs for number in pair]], height, width, f"{where}: 'points'")


def _box(element: Element, where: str, height: int, width: int) -> Mapping[str, Any]:
    left, top, right, bottom = (read_number(element.attrib, name, where) for name in ("xtl", "ytl", "xbr", "ybr"))
    outline = rectangle_outline(left, top, right - left, bottom - top, _rotation(element, where))
    return read_mask([outline], height, width, where)


def _ellipse(element: Element, where: str, height: int, width: int) -> Mapping[str, Any]:
    x, y, radius_x, radius_y = (read_number(element.attrib, name, where) for name in ("cx", "cy", "rx", "ry"))
    outline = ellipse_outline(x, y, radius_x, radius_y, _rotation(element, where))
    return read_mask([outline], height, width, where)


def _rotation(element: Element, where: str) -> float:
    return read_number(element.attrib, "rotation", where) if element.get("rotation") else 0.0


def _brush(element: Element, where: str, height: int, width: int) -> Mapping[str, Any]:
    """Return the mask of counts within a box."""
    left, top, columns, rows = (
        round(read_number(element.attrib, name, where)) for name in ("left", "top", "width", "height")
    )
    text = element.get("rle") or ""
    try:
        runs = np.array([int(run) for run in text.split(",")], dtype=np.int64)
    except (ValueError, OverflowError):
        runs = np.zeros(0, np.int64)
    area = columns * rows if min(columns, rows) > 0 else -1
    fits = len(runs) > 0 and runs.min() >= 0 and runs.max() <= area <= max_pixels() and runs.sum() == area
    if not fits:
        raise BadRowError(
            f"{where}: 'rle': expected counts that add up to the {columns}x{rows} pixels of its box, got "
            f"{short(text, 40)}; export the task again",
            "mask_malformed",
        )
    inside = np.arange(len(runs)) % 2 == 1
    return paste_mask(np.repeat(inside, runs).reshape(rows, columns), left, top, f"{where}: 'rle'", height, width)


_MASKS: dict[str, Callable[[Element, str, int, int], Mapping[str, Any]]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _brush,
}
