"""Read the labeled images of any dataset whose objects have masks and classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ....image_inputs import to_rgb
from ...errors import BadRowError, BadRows, join_names, reject, short
from ...fields import class_name
from ...masks import decode_mask
from ...readers.labels.files import SPLIT_FOLDERS
from ...readers.labels.objects import LabeledImage, LabeledObject
from ...readers.labels.reader import LabelReader
from ...readers.paths import is_inside
from ...readers.registry import find_reader, registered_readers
from ...schema import open_image
from ...sources import DataSource
from .colors import clear_color, color_shares, is_colorful, is_dark
from .objects import SceneObject, decode_box, is_scattered, place

_UNPLACED = ("mask_empty", "mask_out_of_frame")
# Folders in the names of images that the output has already.
_REPEATED_FOLDERS = {"images", "jpegimages", *SPLIT_FOLDERS}


@dataclass
class Scene:
    """An image and its labeled objects.

    Args:
        image: the image.
        name: name of the image in the output.
        objects: all labeled objects, those of other splits included.
    """

    image: LabeledImage
    name: str
    objects: list[SceneObject]


@dataclass
class SceneReader:
    """Reads the scenes of a dataset of labeled objects, and counts what was skipped.

    Args:
        source: the dataset.
        bad_rows: collects invalid objects, whose images are skipped; None raises the first.
        allow_outside: also read images that are not in the image folder.
        skipped: number of images without objects, per split.

    Raises:
        ValueError: the dataset has no objects with a class.
    """

    source: DataSource
    bad_rows: BadRows | None = None
    allow_outside: bool = False
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        reader = find_reader(self.source)
        if not isinstance(reader, LabelReader):
            self.source.splits()  # raises if the dataset does not exist
            found = reader.accepts if reader else "another dataset"
            accepted = ", ".join(one.title for one in registered_readers() if isinstance(one, LabelReader))
            raise ValueError(
                f"--dataset {self.source.dataset}: expected masks with classes, got {found}; pass the export of a "
                f"labeling tool: {accepted}"
            )
        self._reader = reader

    def scenes(self, split: str) -> Iterator[Scene]:
        """Yield the images that have objects in this split, in the order of the export.

        Raises:
            FileNotFoundError, ValueError: the export is missing or cannot be read, or the split does not exist. A
                `BadRowError` if an object is invalid: it names file, object and field.
        """
        found = self.source.splits()
        if split not in found:
            raise ValueError(
                f"{self.source.dataset}: no split '{split}', expected one of {join_names(found)}; change --splits"
            )
        merged: dict[Path, list[LabeledImage]] = {}
        seen: set[int] = set()
        for image in self._reader.images(self.source, split):
            if isinstance(image, BadRowError):
                reject(image, self.bad_rows)
            elif image.objects:
                merged.setdefault(_file(image), []).append(image)
            else:
                self.skipped[split] += image.split == split
        for images in merged.values():  # an image of two names is one image
            objects = [item for image in images for item in image.objects]
            valid = [item for item in objects if isinstance(item, LabeledObject)]
            splits = {item.split or image.split for image in images for item in valid if item in image.objects}
            if splits and split not in splits:
                continue
            scene = self._scene(images[0], objects, split, seen)
            if scene is not None:
                yield scene

    def _scene(
        self, image: LabeledImage, objects: Sequence[LabeledObject | BadRowError], split: str, seen: set[int]
    ) -> Scene | None:
        """Return the scene of an image; None if it was rejected, as a sentence could be true of an invalid object."""
        is_valid = True
        for item in objects:
            try:
                if isinstance(item, BadRowError):
                    raise item
                if not self.allow_outside and image.data is None and not is_inside(image.file, image.root):
                    file, real = _file(image), os.path.realpath(image.file)
                    leads = "" if real == str(file) else f", which leads to {real}"
                    raise BadRowError(
                        f"{item.where}: expected an image in {image.root}, got {file}{leads}; copy it there, or pass "
                        "--allow_outside"
                    )
                _check_label(item, seen)
            except BadRowError as error:
                reject(error, self.bad_rows)
                is_valid = False
        if not is_valid:
            return None
        try:
            found = _read_objects(image, [item for item in objects if isinstance(item, LabeledObject)])
        except BadRowError as error:
            reject(error, self.bad_rows)
            return None
        return Scene(image, _output_name(image, split), found)


def _output_name(image: LabeledImage, split: str) -> str:
    """Return the name of an image below the folder of its split in the output."""
    file, root = _file(image), Path(os.path.abspath(image.root))
    parts = file.relative_to(root).parts if file.is_relative_to(root) else (file.name,)
    while len(parts) > 1 and (parts[0] == split or parts[0].lower() in _REPEATED_FOLDERS):
        parts = parts[1:]
    return "/".join(parts)


def _file(image: LabeledImage) -> Path:
    return Path(os.path.abspath(image.file))


def _check_label(item: LabeledObject, seen: set[int]) -> None:
    """Raise a BadRowError if the class of an object is invalid, or its id is not unique."""
    if item.ann_id in seen:
        raise BadRowError(
            f"{item.where}: expected a unique 'id', got one that two annotations have; renumber one of the two",
            "duplicate_id",
        )
    seen.add(item.ann_id)
    if isinstance(item.label, BadRowError):
        raise item.label
    if item.label is None or not class_name(item.label) or not item.label.strip().isprintable():
        raise BadRowError(f"{item.where}: expected the name of a class, got {short(item.label)}; name the class")


def _read_objects(image: LabeledImage, items: Sequence[LabeledObject]) -> list[SceneObject]:
    """Return the objects of one image."""
    height, width = image.read_size(items[0].where)
    objects = []
    for item in items:
        assert isinstance(item.label, str)
        found = SceneObject(
            ann_id=item.ann_id,
            name=class_name(item.label),
            general=class_name(item.general),
            category_id=item.category_id,
            split=item.split or image.split,
        )
        if not item.is_crowd and item.mask is not None:
            try:
                mask = item.mask(height, width)
                foreground = decode_mask(mask)
                if not is_scattered(foreground):
                    found = replace(found, mask=mask, **place(foreground))
            except BadRowError as error:
                if error.kind not in _UNPLACED:
                    raise
        objects.append(found)
    return _with_colors(objects, image)


def _with_colors(objects: list[SceneObject], image: LabeledImage) -> list[SceneObject]:
    pixels = to_rgb(open_image({"path": str(image.file), "bytes": image.data}))
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
