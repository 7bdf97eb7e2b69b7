"""The content of one COCO JSON file; see `coco.py` for the format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...safe_loading import read_json
from ...text_cleaning import has_surrogate
from ..errors import BadRowError, join_names, short
from ..fields import class_name, read_flag, read_id, read_mask, text_id
from ..masks import as_integer
from .labels.files import ImageFinder
from .labels.objects import LabeledImage, LabeledObject
from .labels.text_fields import find_text
from .paths import mask_finder, named_file
from .row_cache import shared

_LISTS = ("images", "annotations")


class CocoFile:
    """Images, annotations, classes and licenses of a COCO JSON file.

    Args:
        path: the file.
        images: images, keyed by id; several of one id if they differ.
        annotations: annotations in the order of the file.
        content: the complete content.
    """

    def __init__(
        self, path: Path, images: dict[Any, list[dict]], annotations: list[dict], content: dict[str, Any]
    ) -> None:
        self.path, self.images, self.annotations, self.content = path, images, annotations, content
        self._licenses = _licenses(content)
        self._classes: dict[Any, tuple[str, str]] | ValueError
        try:
            self._classes = _classes(content, path)
        except ValueError as error:  # rows need no classes
            self._classes = error

    @classmethod
    def read(cls, path: Path) -> CocoFile:
        """Read a file, once while `share_rows` is active.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is not COCO JSON.
        """
        return shared((cls, str(path)), lambda: cls._read(path))

    @classmethod
    def _read(cls, path: Path) -> CocoFile:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; pass a COCO .json file")
        content = read_json(path)
        if not isinstance(content, dict) or not all(_is_list_of_objects(content.get(name)) for name in _LISTS):
            found = f"the fields {join_names(map(str, content))}" if isinstance(content, dict) else _json_type(content)
            raise ValueError(
                f"{path}: expected COCO JSON with the lists 'images' and 'annotations' of objects, got {found}; pass "
                "another file"
            )
        images: dict[Any, list[dict]] = {}
        for number, image in enumerate(content["images"]):
            if "id" not in image:
                raise ValueError(
                    f"{path}: expected COCO JSON whose 'images' each have an 'id', got entry {number} without"
                )
            entries = images.setdefault(coco_id(image["id"]), [])
            if image not in entries:
                entries.append(image)
        return cls(path, images, content["annotations"], content)

    def check_classes(self) -> None:
        """Raise a ValueError if the classes are missing or invalid."""
        if isinstance(self._classes, ValueError):
            raise self._classes

    def split_of(self, annotation: Mapping[str, Any], default: str) -> str:
        """Return the split that an annotation or its image names, or the default."""
        image = self.images.get(coco_id(annotation.get("image_id")), [{}])[0]
        return str(annotation.get("split") or image.get("split") or default)

    @staticmethod
    def has_text(annotation: Mapping[str, Any]) -> bool:
        """Return whether an annotation has sentences, valid or not."""
        return _text(annotation) is not None

    def labeled_images(
        self,
        folder: Path,
        root: Path,
        base: Path | None,
        default_split: str,
        *,
        select: Callable[[dict], bool] | None = None,
        finder: ImageFinder | None = None,
    ) -> Iterator[LabeledImage | BadRowError]:
        """Yield the images in the order of their first annotation, then those without annotations.

        Args:
            folder: folder of the images.
            root: see `LabeledImage`.
            base: folder of a dataset of one file per split: names and ids of images are made relative to it.
            default_split: split of images and annotations that name none.
            select: returns whether an annotation is read; None reads all.
            finder: finds images that are not in `folder`; None does not search for them.
        """
        grouped: dict[Any, list[LabeledObject | BadRowError]] = {}
        for order, annotation in enumerate(self.annotations):
            if select is not None and not select(annotation):
                continue
            where = f"{self.path}: annotation {short(annotation.get('id'))}"
            try:
                image = self._image(annotation, where)
            except BadRowError as error:
                yield error
                continue
            objects = grouped.setdefault(coco_id(annotation["image_id"]), [])
            try:
                split = self.split_of(annotation, default_split)
                objects.append(self._object(annotation, image, folder, root, where, split, order))
            except BadRowError as error:
                objects.append(error)
        if select is None:
            grouped.update((key, []) for key in self.images if key not in grouped)
        for key, objects in grouped.items():
            image = self.images[key][0]
            name = image.get("file_name")
            if not isinstance(name, str):  # an image without annotations
                continue
            file = named_file(folder, name)
            if finder is not None and not os.path.isfile(file):
                file = finder.find(name, near=folder)
            if base is not None:
                name = Path(os.path.relpath(file, base)).as_posix()
            number = read_id(key, text_id(name), str(self.path)) if base is None else text_id(name)
            split = str(image.get("split") or default_split)
            yield LabeledImage(
                where=str(self.path),
                file=file,
                name=name,
                root=root,
                split=split,
                objects=objects,
                size=_declared_size(image),
                image_id=number,
                license=_license(image.get("license"), self._licenses),
                url=_url(image),
            )

    def _image(self, annotation: Mapping[str, Any], where: str) -> dict:
        """Return the image of an annotation, whose file name and size are valid."""
        image_id = annotation.get("image_id")
        key = coco_id(image_id)
        entries = self.images.get(key, [])
        if key is None or not entries:
            raise BadRowError(
                f"{where}: expected an 'image_id' among 'images', got {image_id!r:.60}; add the image or fix the id"
            )
        if len(entries) > 1:
            names = " and ".join(short(entry.get("file_name")) for entry in entries[:2])
            raise BadRowError(
                f"{where}: expected one image with the id {image_id!r:.60} in 'images', got {names}; renumber one of "
                "them, with its annotations",
                "duplicate_id",
            )
        name = entries[0].get("file_name")
        if not isinstance(name, str) or not name or "\0" in name or has_surrogate(name):
            raise BadRowError(f"{where}: expected text as 'file_name' of image {key}, got {short(name)}; fix it")
        for side in ("height", "width"):
            value = entries[0].get(side)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise BadRowError(
                    f"{where}: expected a number as '{side}' of image {short(key)}, got {short(value, 40)}; fix it"
                )
        return entries[0]

    def _object(
        self,
        annotation: Mapping[str, Any],
        image: Mapping[str, Any],
        folder: Path,
        root: Path,
        where: str,
        split: str,
        order: int,
    ) -> LabeledObject:
        if annotation.get("id") is None:
            raise BadRowError(f"{where}: expected an 'id', got nothing; add a unique id to each annotation")
        ann_id = read_id(annotation["id"], -1, f"{where}: 'id'")
        text_field, sentences = _text(annotation) or ("sentences", None)
        label, general = self._label(annotation, where)
        field = f"{where}: 'segmentation'"
        mask = partial(
            read_mask, annotation.get("segmentation"), where=field, find_file=mask_finder(folder, root, field)
        )
        category_id = read_id(annotation.get("category_id"), -1, f"{where}: 'category_id'")
        return LabeledObject(
            where=where,
            ann_id=ann_id,
            mask=None if read_flag(annotation.get("no_target"), f"{where}: 'no_target'") else mask,
            label=label,
            general=general,
            category_id=category_id,
            sentences=sentences,
            text_field=text_field,
            is_crowd=_is_crowd(annotation, where),
            split=split,
            order=order,
        )

    def _label(self, annotation: Mapping[str, Any], where: str) -> tuple[str | BadRowError | None, str]:
        """Return the names of an annotation's class and of its supercategory."""
        category = annotation.get("category_id")
        if isinstance(self._classes, ValueError):  # raised by `check_classes` where classes are needed
            return None, ""
        if coco_id(category) is not None and coco_id(category) in self._classes:
            return self._classes[coco_id(category)]
        return BadRowError(
            f"{where}: expected a 'category_id' among 'categories', got {short(category)}; add the category or fix "
            "the id"
        ), ""


def coco_id(value: Any) -> int | str | None:
    """Return an id so that 7, 7.0 and "7" are the same, as exporters mean them; None if it is not an id."""
    value = as_integer(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _text(annotation: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the field that holds an annotation's sentences, and its value; None if there are none."""
    if annotation.get("sentences"):
        return "sentences", annotation["sentences"]
    if annotation.get("sentence") is not None:
        return "sentence", annotation["sentence"]
    attributes = annotation.get("attributes")
    return find_text(attributes) if isinstance(attributes, Mapping) else None


def _declared_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width of an image if it has both; `CocoFile` checks that they are numbers."""
    height, width = image.get("height"), image.get("width")
    return None if height is None or width is None else (height, width)


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


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _json_type(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
