"""Labeled images, as a labeling tool exports them, before they become rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadRowError
from ...fields import text_id, upright_size
from ..paths import note_outside


@dataclass(frozen=True)
class LabeledObject:
    """One object of an image.

    Args:
        where: the file and the object in it, the prefix of error messages: "a.json: shape 3".
        ann_id: id of the object, unique in its split; see `object_id`.
        mask: called with height and width of the upright image in pixels, returns the mask as compressed RLE, or
            raises a BadRowError. `functools.partial(read_mask, polygons, where=...)` is such a function. None if the
            sentences refer to nothing in the image.
        label: name of its class; None without one; a BadRowError if it is invalid.
        general: name of its supercategory, or "".
        category_id: id of its class, or -1.
        sentences: a text or a list of texts, in any form that `read_sentences` accepts; None without any.
        text_field: name of the field that the sentences come from, for error messages.
        is_crowd: the mask covers several objects of the class.
        split: split of the object; None for that of its image.
        order: rows are sorted by this number; rows of equal numbers keep the order of the images.
    """

    where: str
    ann_id: int
    mask: Callable[[int, int], Mapping[str, Any]] | None
    label: str | BadRowError | None = None
    general: str = ""
    category_id: int = -1
    sentences: Any = None
    text_field: str = "sentences"
    is_crowd: bool = False
    split: str | None = None
    order: int = 0


@dataclass(frozen=True)
class LabeledImage:
    """An image and its objects.

    Args:
        where: the file that describes the image, the prefix of error messages.
        file: path of the image.
        name: its name relative to the image folder, with slashes.
        root: folder of the dataset or of its images; a file outside it is reported as a notice.
        split: split of the image.
        objects: its objects, invalid ones as their errors.
        data: content of the image file, if the export contains it and `file` does not exist.
        size: height and width in pixels as the export declares them; None if it does not.
        image_id: by default derived from the name.
        license, url: license and address of the image, if the export names them.
    """

    where: str
    file: Path
    name: str
    root: Path
    split: str
    objects: Sequence[LabeledObject | BadRowError]
    data: bytes | None = None
    size: tuple[int, int] | None = None
    image_id: int | None = None
    license: str | None = None
    url: str | None = None

    @property
    def number(self) -> int:
        """The id of the image."""
        return text_id(self.name) if self.image_id is None else self.image_id

    @property
    def source(self) -> str | dict[str, Any]:
        """The image as the column `image` of a row takes it."""
        return str(self.file) if self.data is None else {"path": os.path.basename(self.file), "bytes": self.data}

    def read_size(self, where: str) -> tuple[int, int]:
        """Return height and width of the upright image in pixels.

        Args:
            where: prefix of error messages.

        Raises:
            MissingImageError: the file does not exist.
            BadRowError: the file is not an image, or has another size than the export declares.
        """
        height, width = upright_size({"path": str(self.file), "bytes": self.data}, where)
        if self.data is None:
            note_outside(self.file, self.root, where)
        if self.size is not None and self.size != (height, width):
            turned = " after applying its EXIF orientation" if self.size == (width, height) else ""
            raise BadRowError(
                f"{where}: expected an image of {self.size[1]}x{self.size[0]} pixels as in "
                f"{os.path.basename(self.where)}, got {self.file} of {width}x{height} pixels{turned}; label the image "
                "as it is, or fix the declared size",
                "mask_malformed",
            )
        return height, width


def object_id(image: str, index: int | str) -> int:
    """Return an id for an object without one in the export; it does not change when other images are added.

    Args:
        image: name of the image.
        index: index or name of the object in its image.
    """
    return text_id(f"{image}#{index}")
