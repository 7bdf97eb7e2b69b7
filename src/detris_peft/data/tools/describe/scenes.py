"""Read the annotated images of a COCO instances file.

{"images":      [{"id": 1, "file_name": "0001.jpg", "license": 4}],
 "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "segmentation": [[...]], "iscrowd": 0}],
 "categories":  [{"id": 18, "name": "dog"}],
 "licenses":    [{"id": 4, "name": "Attribution License", "url": "..."}]}     licenses are optional
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ....image_inputs import to_rgb
from ....text_cleaning import has_surrogate
from ...errors import BadRowError, BadRows, join_names, reject, short
from ...fields import read_flag, read_id, read_mask, upright_size
from ...masks import as_integer, decode_mask
from ...readers.coco import (
    PLACEHOLDER,
    CocoReader,
    check_declared_size,
    coco_id,
    coco_splits,
    find_image,
    read_coco_file,
    split_of,
)
from ...readers.paths import is_inside, named_file
from ...readers.registry import find_reader
from ...schema import open_image
from ...sources import DataSource
from .colors import clear_color, color_shares, is_colorful, is_dark
from .objects import SceneObject, class_name, decode_box, is_scattered, place

_UNPLACED = ("mask_empty", "mask_out_of_frame")


@dataclass
class Scene:
    """An image and its annotated objects.

    Args:
        file: path of the image.
        name: name of the image below the image folder.
        objects: all annotated objects, those of other splits included.
        license: its license as the file names it, with the address if there is one; None if it names none.
        url: the image's address; None if the file has none.
    """

    file: Path
    name: str
    objects: list[SceneObject]
    license: str | None = None
    url: str | None = None


@dataclass
class SceneReader:
    """Reads the scenes of a COCO instances file, and counts what was skipped.

    Args:
        source: the dataset.
        bad_rows: collects invalid annotations, whose images are skipped; None raises the first.
        allow_outside: also read images that are not in the image folder.
        skipped: number of images without annotations, per split.

    Raises:
        ValueError: the dataset is not a COCO file.
    """

    source: DataSource
    bad_rows: BadRows | None = None
    allow_outside: bool = False
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        reader = find_reader(self.source)
        if not isinstance(reader, CocoReader):
            self.source.splits()  # raises if the dataset does not exist
            accepted = reader.accepts if reader else "another dataset"
            raise ValueError(
                f"--dataset {self.source.dataset}: expected a COCO .json file with instance masks, got {accepted}; "
                "pass the .json file"
            )
        self._reader = reader

    def scenes(self, split: str) -> Iterator[Scene]:
        """Yield the images that have annotations in this split, in the order of the file.

        Raises:
            FileNotFoundError, ValueError: the file is missing or is no COCO instances file. A `BadRowError` if an
                annotation is invalid: it names file, id and field.
        """
        file = self._reader.file(self.source)
        templated = PLACEHOLDER in str(file)
        path = Path(str(file).replace(PLACEHOLDER, split))
        if templated and not path.is_file():
            raise _no_split(path, split, coco_splits(file))
        images, annotations, content = read_coco_file(path)
        default = split if templated else "train"
        found = {split_of(annotation, images, default) for annotation in annotations}
        if not templated and split not in found:
            raise _no_split(path, split, sorted(found))
        classes, licenses = _classes(content, path), _licenses(content)
        folder = Path(os.path.abspath(self._reader.image_folder(self.source, split) or path.parent))
        annotated: dict[Path, list[dict]] = {}
        broken: set[Path] = set()
        seen: set[int] = set()
        for annotation in annotations:
            where = f"{path}: annotation {short(annotation.get('id'))}"
            try:
                image = find_image(annotation, images, where)
                file = self._image_file(image, folder, where)
            except BadRowError as error:
                reject(error, self.bad_rows)
                continue
            annotated.setdefault(file, []).append(annotation)
            try:
                _check_annotation(annotation, classes, where, seen)
            except BadRowError as error:
                reject(error, self.bad_rows)
                broken.add(file)
        used = {coco_id(annotation.get("image_id")) for annotation in annotations}
        self.skipped[split] += sum(
            key not in used and str(entries[0].get("split") or default) == split for key, entries in images.items()
        )
        for file, own in annotated.items():
            splits = [split_of(annotation, images, default) for annotation in own]
            if split not in splits or file in broken:
                continue
            try:
                image = find_image(own[0], images, str(path))
                objects = _read_objects(file, image, own, splits, classes, path)
            except BadRowError as error:
                reject(error, self.bad_rows)
                continue
            name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
            yield Scene(file, name, objects, _license(image.get("license"), licenses), _url(image))

    def _image_file(self, image: Mapping[str, Any], folder: Path, where: str) -> Path:
        name = image.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name or has_surrogate(name):
            raise BadRowError(f"{where}: expected text as 'file_name' of its image, got {short(name)}; fix it")
        file = Path(os.path.abspath(named_file(folder, name)))  # an image of two names is one image
        if not self.allow_outside and not is_inside(file, folder):
            raise BadRowError(
                f"{where}: expected an image in {folder}, got {file}, which leads to {os.path.realpath(file)}; copy "
                "it there, or pass --allow_outside"
            )
        return file


def _no_split(path: Path, split: str, found: list[str]) -> ValueError:
    return ValueError(f"{path}: no split '{split}', expected one of {join_names(found)}; change --splits")


def _read_objects(
    file: Path,
    image: Mapping[str, Any],
    annotations: list[dict],
    splits: list[str],
    classes: Mapping[Any, tuple[str, str]],
    path: Path,
) -> list[SceneObject]:
    """Return the annotated objects of one image."""
    where = f"{path}: annotation {short(annotations[0].get('id'))}"
    height, width = upright_size({"path": str(file)}, f"{where}: image {short(image['id'])}")
    check_declared_size(image, height, width, where, file)
    objects = []
    for annotation, split in zip(annotations, splits, strict=True):
        where = f"{path}: annotation {short(annotation.get('id'))}"
        category = coco_id(annotation["category_id"])
        name, general = classes[category]
        item = SceneObject(
            ann_id=read_id(annotation["id"], -1, f"{where}: 'id'"),
            name=name,
            general=general,
            category_id=read_id(category, -1, f"{where}: 'category_id'"),
            split=split,
        )
        if not _is_crowd(annotation, where):
            try:
                mask = read_mask(annotation.get("segmentation"), height, width, f"{where}: 'segmentation'")
                foreground = decode_mask(mask)
                if not is_scattered(foreground):
                    item = replace(item, mask=mask, **place(foreground))
            except BadRowError as error:
                if error.kind not in _UNPLACED:
                    raise
        objects.append(item)
    return _with_colors(objects, file)


def _with_colors(objects: list[SceneObject], file: Path) -> list[SceneObject]:
    pixels = to_rgb(open_image({"path": str(file), "bytes": None}))
    if not is_colorful(pixels):
        return objects
    colored, dark = [], is_dark(pixels)
    for item in objects:
        if item.mask is not None:
            foreground, box = decode_box(item.mask, item.box)
            shares = color_shares(pixels[box], foreground)
            if dark and clear_color(shares) == "black":  # perhaps only in the dark
                shares = None
            item = replace(item, shares=shares)
        colored.append(item)
    return colored


def _check_annotation(annotation: Mapping[str, Any], classes: Mapping[Any, Any], where: str, seen: set[int]) -> None:
    if annotation.get("id") is None:
        raise BadRowError(f"{where}: expected an 'id', got nothing; add a unique id to each annotation")
    ann_id = read_id(annotation["id"], -1, f"{where}: 'id'")
    if ann_id in seen:
        raise BadRowError(
            f"{where}: expected a unique 'id', got one that two annotations have; renumber one of the two",
            "duplicate_id",
        )
    seen.add(ann_id)
    category = annotation.get("category_id")
    if coco_id(category) is None or coco_id(category) not in classes:
        raise BadRowError(
            f"{where}: expected a 'category_id' among 'categories', got {short(category)}; add the category or fix "
            "the id"
        )


def _is_crowd(annotation: Mapping[str, Any], where: str) -> bool:
    """Return the field `iscrowd`, which COCO writes as 0 or 1."""
    value = as_integer(annotation.get("iscrowd"))
    if value in (0, 1) and not isinstance(value, bool):
        return value == 1
    return read_flag(value, f"{where}: 'iscrowd'")


def _classes(content: Mapping[str, Any], path: Path) -> dict[Any, tuple[str, str]]:
    """Return the names of the classes and of their supercategories ("" if there is none), keyed by id."""
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories or not all(isinstance(one, dict) for one in categories):
        raise ValueError(
            f"{path}: expected COCO instances with the list 'categories', got {short(categories)}; add the ids and "
            "names of the classes"
        )
    classes: dict[Any, tuple[str, str]] = {}
    for category in categories:
        key, name = coco_id(category.get("id")), category.get("name")
        where = f"{path}: category {short(category.get('id'))}"
        if key is None:
            raise ValueError(f"{where}: expected an integer or text as its 'id'; fix the id")
        if not isinstance(name, str) or not class_name(name) or not name.strip().isprintable():
            raise ValueError(f"{where}: expected text as its 'name', got {short(name)}; name the class")
        general = category.get("supercategory")
        entry = class_name(name), class_name(general) if isinstance(general, str) else ""
        if classes.setdefault(key, entry)[0] != entry[0]:
            raise ValueError(
                f"{where}: expected one name, got {short(classes[key][0])} and {short(name)}; renumber one"
            )
    return classes


def _licenses(content: Mapping[str, Any]) -> dict[Any, str]:
    """Return the licenses as text, keyed by id; entries without an id or name are ignored."""
    licenses = content.get("licenses")
    found = {}
    for entry in licenses if isinstance(licenses, list) else []:
        if isinstance(entry, dict) and coco_id(entry.get("id")) is not None and isinstance(entry.get("name"), str):
            address = f" ({entry['url']})" if isinstance(entry.get("url"), str) and entry["url"] else ""
            found[coco_id(entry["id"])] = _line(entry["name"] + address)
    return found


def _url(image: Mapping[str, Any]) -> str | None:
    urls = [image.get(name) for name in ("flickr_url", "coco_url")]
    return next((_line(url) for url in urls if isinstance(url, str) and url), None)


def _license(value: Any, licenses: Mapping[Any, str]) -> str | None:
    """Return the license of an image, which is an id, or its name."""
    if coco_id(value) in licenses:
        return licenses[coco_id(value)]
    return _line(value) if isinstance(value, str) and value.strip() else None


def _line(text: str) -> str:
    """Return text of other people's files on one line of printable characters, as the dataset card requires."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:300]
