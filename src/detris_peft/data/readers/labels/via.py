"""Reader for VGG Image Annotator (VIA) 1 and 2: projects, and annotations exported as JSON or CSV.

<folder>/0001.jpg                      or below the default path of the project's settings
<folder>/via_project.json              one file; or one per split, in folders named train, val and test

{"_via_img_metadata": {"0001.jpg81234": {"filename": "0001.jpg", "size": 81234, "file_attributes": {}, "regions": [
    {"shape_attributes": {"name": "polygon", "all_points_x": [10, 40, 30], "all_points_y": [20, 22, 60]},
     "region_attributes": {"class": "rose", "description": "the left rose"}}]}},
 "_via_attributes": {"region": {"class": {"type": "dropdown", "options": {"rose": "Rose"}}}}, ...}

An export of annotations as JSON is the value of "_via_img_metadata" alone; VIA 1 numbers the regions in an object.
One as CSV has a line for each region, with both kinds of attributes as JSON.

The class is the attribute named class, label, category or object; without these, the only dropdown or radio attribute
of the project; without that, the attribute named type or name; otherwise the only attribute that is not a checkbox;
otherwise the only attribute, whose checked option is the class. Attributes with one of the names `TEXT_FIELDS` do not
count. A class with options is named by the description in the project, or by its id if that is blank.

Format: `pack_via_metadata` and `via_region_shape_to_coco_annotation` of VIA 2, https://gitlab.com/vgg/via. COCO
from VIA is read as COCO.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import BadRowError, join_names, short
from ...fields import read_mask
from ...masks import all_finite
from ..registry import Source, dataset_path
from .files import MAX_DETECTED, ImageFinder, check_once, files_of_splits, image_finder, read_file_name
from .objects import LabeledImage
from .outlines import ellipse_outline, rectangle_outline
from .reader import LabelReader
from .shapes import Shape, notice_without_area, read_number, unite_shapes
from .text_fields import find_text, is_text_field
from .via_files import SUFFIXES, is_via, read_via

_WITHOUT_AREA = ("point", "polyline")
_CLASS_NAMES, _OTHER_NAMES = ("class", "label", "category", "object"), ("type", "name")
_CHOICES = ("dropdown", "radio")


class ViaReader(LabelReader):
    """Reads a project or exported annotations, or a folder with such a file."""

    name = "via"
    title = "VGG Image Annotator"
    accepts = "a project, or annotations as JSON or CSV, of VGG Image Annotator"
    options = ("image_folder",)
    text_field = "a text attribute of the regions, named description (VIA: Attributes, Region Attributes)"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        if path is None or path.is_file():
            return path is not None and is_via(path)
        return bool(files_of_splits(path, SUFFIXES, is_via, MAX_DETECTED))

    def splits(self, source: Source) -> Iterable[str]:
        return dict.fromkeys(split for _, split in self._files(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return [file for file, _ in self._files(source)]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        finder = image_finder(source)
        seen: dict[Path, str] = {}
        left_out: Counter[str] = Counter()
        for file, name in self._files(source):
            if name != split:
                continue
            images, project = read_via(file)
            classes = _ClassAttribute.find(images, project)
            for key, image in images.items():
                where = f"{file}: image {short(key)}"
                try:
                    found = _find_image(image, project, file, finder, where)
                    check_once(found, where, seen)
                    regions = [
                        _region(region, f"{where}: region {number}", classes)
                        for number, region in _regions(image, where)
                    ]
                    left_out.update(region for region in regions if isinstance(region, str))
                    name_in_folder = finder.relative(found)
                    objects = unite_shapes((None if isinstance(one, str) else one for one in regions), name_in_folder)
                    yield LabeledImage(str(file), found, name_in_folder, finder.folder, split, objects)
                except BadRowError as error:
                    yield error
        notice_without_area(left_out, source.dataset)

    def _files(self, source: Source) -> list[tuple[Path, str]]:
        files = files_of_splits(dataset_path(source), SUFFIXES, is_via)
        if not files:
            raise FileNotFoundError(
                f"{source.dataset}: expected a project or annotations of VGG Image Annotator, found none; pass the "
                ".json or .csv file"
            )
        return files


@dataclass(frozen=True)
class _ClassAttribute:
    """The attribute of the regions that holds the class; see the module.

    Args:
        name: its name; None if it is unclear.
        options: the descriptions of its options, keyed by id; none for a text attribute.
        candidates: all attributes that hold no sentences.
    """

    name: str | None
    options: Mapping[str, Any]
    candidates: Sequence[str]

    @classmethod
    def find(cls, images: Mapping[str, Any], project: Mapping[str, Any]) -> _ClassAttribute:
        attributes = _section(project, "_via_attributes", "region")
        definitions = {name: one for name, one in attributes.items() if isinstance(one, Mapping)}
        checkboxes = _used_attributes(images)
        names = [name for name in {**attributes, **checkboxes} if not is_text_field(name)]
        by_name = {name.strip().lower(): name for name in reversed(names)}
        choices = [name for name in names if definitions.get(name, {}).get("type") in _CHOICES]
        for candidates in (
            [by_name[name] for name in _CLASS_NAMES if name in by_name][:1],
            choices,
            [by_name[name] for name in _OTHER_NAMES if name in by_name][:1],
            [name for name in names if not checkboxes.get(name)],
            names,
        ):
            if len(candidates) == 1:
                options = definitions.get(candidates[0], {}).get("options")
                return cls(candidates[0], options if isinstance(options, Mapping) else {}, names)
        return cls(None, {}, names)

    def label(self, attributes: Mapping[str, Any], where: str) -> str | BadRowError | None:
        """Return the class of a region; None without one; or the error of an invalid one or an unclear attribute."""
        if self.name is None:
            names = ", ".join(self.candidates)
            error = f"{where}: expected the class in one region attribute, got {names:.200}; name one of them 'class'"
            return BadRowError(error) if names else None
        value, where = attributes.get(self.name), f"{where}: '{self.name}'"
        if isinstance(value, Mapping):  # the options of a checkbox attribute
            checked = [name for name, is_checked in value.items() if is_checked]
            if len(checked) > 1:
                return BadRowError(f"{where}: expected one class, got {', '.join(checked):.80}; uncheck the others")
            value = checked[0] if checked else None
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            return BadRowError(f"{where}: expected text as the class, got {short(value)}; fix it")
        if self.options and value not in self.options:
            known = f"{join_names(self.options):.200}"
            return BadRowError(f"{where}: expected one of the options {known}, got {short(value)}; add it to them")
        description = self.options.get(value)
        return description.strip() or value if isinstance(description, str) else value


def _used_attributes(images: Mapping[str, Any]) -> dict[str, bool]:
    """Return the names of the attributes that regions have, and whether each is a checkbox attribute."""
    found: dict[str, bool] = {}
    for image in images.values():
        regions = image.get("regions") if isinstance(image, Mapping) else None
        if isinstance(regions, Mapping):
            regions = list(regions.values())
        for region in regions if isinstance(regions, list) else ():
            attributes = region.get("region_attributes") if isinstance(region, Mapping) else None
            for name, value in attributes.items() if isinstance(attributes, Mapping) else ():
                found[name] = found.get(name, False) or isinstance(value, Mapping)
    return found


def _regions(image: Any, where: str) -> list[tuple[Any, Any]]:
    """Return the regions of an image with their numbers."""
    regions = image.get("regions") if isinstance(image, Mapping) else None
    if isinstance(regions, Mapping):
        return list(regions.items())
    if not isinstance(regions, list):
        raise BadRowError(f"{where}: expected an object with 'filename' and 'regions', got {short(image)}; fix it")
    return list(enumerate(regions))


def _section(project: Mapping[str, Any], *names: str) -> Mapping[Any, Any]:
    """Return an object within the project, or an empty one if it is missing or something else."""
    for name in names:
        value = project.get(name)
        project = value if isinstance(value, Mapping) else {}
    return project


def _find_image(image: Any, project: Mapping[str, Any], file: Path, finder: ImageFinder, where: str) -> Path:
    if isinstance(image, BadRowError):
        raise image
    name = read_file_name(image.get("filename") if isinstance(image, Mapping) else None, f"{where}: 'filename'")
    folder = _section(project, "_via_settings", "core").get("default_filepath")
    if isinstance(folder, str) and os.path.isfile(file.parent / folder / name):
        return finder.find(name, near=file.parent / folder)
    return finder.find(name, near=file.parent)


def _region(region: Any, where: str, classes: _ClassAttribute) -> Shape | BadRowError | str:
    """Return a region; its error; or its shape if it is left out because of it."""
    try:
        return _read_region(region, where, classes)
    except BadRowError as error:
        return error


def _read_region(region: Any, where: str, classes: _ClassAttribute) -> Shape | str:
    if isinstance(region, BadRowError):
        raise region
    region = region if isinstance(region, Mapping) else {}
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes", {})
    if not isinstance(shape, Mapping) or not isinstance(attributes, Mapping):
        raise BadRowError(
            f"{where}: expected objects as 'shape_attributes' and 'region_attributes', got {short(shape)} and "
            f"{short(attributes)}; fix them"
        )
    kind = shape.get("name")
    if kind in _WITHOUT_AREA:
        return str(kind)
    found = find_text(attributes)
    return Shape(
        where,
        partial(_mask, shape, where),
        label=classes.label(attributes, where),
        sentences=found and found[1],
        text_field=found[0] if found else "description",
    )


def _mask(shape: Mapping[str, Any], where: str, height: int, width: int) -> Mapping[str, Any]:
    return read_mask([_outline(shape, where)], height, width, where)


def _outline(shape: Mapping[str, Any], where: str) -> list[float]:
    kind = shape.get("name")
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or not all_finite(xs + ys):
            raise BadRowError(
                f"{where}: expected lists of the same length of numbers as 'all_points_x' and 'all_points_y', got "
                f"{short(xs)} and {short(ys)}; draw it again",
                "mask_malformed",
            )
        return [number for point in zip(xs, ys, strict=True) for number in point]
    if kind == "rect":
        x, y, width, height = (read_number(shape, name, where) for name in ("x", "y", "width", "height"))
        return rectangle_outline(x, y, width, height)
    if kind == "circle":
        x, y, radius = (read_number(shape, name, where) for name in ("cx", "cy", "r"))
        return ellipse_outline(x, y, radius, radius)
    if kind == "ellipse":
        x, y, radius_x, radius_y = (read_number(shape, name, where) for name in ("cx", "cy", "rx", "ry"))
        radians = read_number(shape, "theta", where) if "theta" in shape else 0.0  # VIA 1 has none
        return ellipse_outline(x, y, radius_x, radius_y, math.degrees(radians))
    known = ", ".join(("polygon", "rect", "circle", "ellipse", *_WITHOUT_AREA))
    raise BadRowError(f"{where}: expected one of {known} as 'name' of the shape, got {short(kind)}; draw a polygon")
