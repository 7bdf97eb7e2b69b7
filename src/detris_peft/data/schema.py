"""The columns that every reader gives, and how a row becomes a image and a mask."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps

from .errors import BadRowError, MissingImageError
from .masks import decode_mask

_QUARTER_TURNS = (5, 6, 7, 8)


class ImageFeature(datasets.Image):
    """`datasets.Image`, except that a image which cannot be decoded is named in the error.

    It is stored and reloaded as a plain `datasets.Image`, and is equal to one.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        with _named(value):
            return super().decode_example(value, token_per_repo_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None  # type: ignore[assignment]  # as every feature type of `datasets`


FEATURES = datasets.Features(
    {
        # Decoded when a row is read, never before; cast to `datasets.Image(decode=False)` to get path and bytes.
        "image": ImageFeature(),
        # Every sentence that refers to the target, as published (field `sent`); at least one, none blank.
        "sentences": [datasets.Value("string")],
        # The targets' pixels as compressed COCO RLE at the image's size [H, W]; see `decode_mask`. Empty only where
        # `no_target` says so.
        "mask": {"size": [datasets.Value("int32")], "counts": datasets.Value("string")},
        "ref_id": datasets.Value("int64"),
        # Of the first target, -1 where there is none; and of all targets.
        "ann_id": datasets.Value("int64"),
        "ann_ids": [datasets.Value("int64")],
        # The sentence refers to nothing in the image (gRefCOCO).
        "no_target": datasets.Value("bool"),
        "image_id": datasets.Value("int64"),
        # One id per sentence, in the order of `sentences`.
        "sent_ids": [datasets.Value("int64")],
        "category_id": datasets.Value("int64"),
        "split": datasets.Value("string"),
        # The set the row comes from, such as "refcoco"; ids are unique within one set only.
        "dataset": datasets.Value("string"),
        # The image's name in the dataset's image folder.
        "file_name": datasets.Value("string"),
    }
)


def open_image(image: Image.Image | Mapping[str, Any]) -> Image.Image:
    """The image of a row's `image`, decoded and turned upright (EXIF), in the file's own mode.

    Args:
        image: a decoded image, or `{"path", "bytes"}` as a column cast to `datasets.Image(decode=False)` holds it.

    Raises:
        MissingImageError: the file is gone; a FileNotFoundError too.
        BadRowError: the file cannot be decoded; the message names it.
    """
    return image if isinstance(image, Image.Image) else ImageFeature().decode_example(dict(image))


def decode_row(row: Mapping[str, Any], image_size: int | None = None) -> tuple[Image.Image, np.ndarray]:
    """A row's image and its targets' mask, (H, W) of uint8 0/1, made sure to be of one size.

    Args:
        row: with the columns of `FEATURES`; its `image` as `open_image` takes it.
        image_size: pixels that the image's longer side needs. Of a JPEG twice as large or more, the decoder makes a
            half, a quarter or an eighth (rounded up) that still has them, in a fraction of the time; the mask stays
            at the file's size. None decodes whole.

    Raises:
        BadRowError: image or mask is missing or damaged, they differ in size, or the mask is empty though the row
            has a target.
    """
    try:
        image, (height, width) = _decoded(row["image"], image_size)
    except BadRowError as error:
        raise type(error)(f"{error} (reference {row['ref_id']})", error.kind) from error
    where = f"{row['file_name']}: reference {row['ref_id']}"
    try:
        mask = decode_mask(row["mask"])
    except ValueError as error:
        raise BadRowError(f"{where}: {error}", "mask_malformed") from error
    if mask.shape != (height, width):
        raise BadRowError(
            f"{row['file_name']}: the image is {width}x{height} pixels but the mask of reference {row['ref_id']} is "
            f"{mask.shape[1]}x{mask.shape[0]}: use the images that the annotations were made on",
            "mask_malformed",
        )
    if not row["no_target"] and not mask.any():
        raise BadRowError(f"{where}: the mask is empty: mend it, or mark the row as no_target", "mask_empty")
    return image, mask


def _decoded(image: Image.Image | Mapping[str, Any], image_size: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image, and the (H, W) it has at full size."""
    if isinstance(image, Image.Image) or image_size is None or (image["bytes"] is None and "://" in image["path"]):
        pixels = open_image(image)
        return pixels, (pixels.height, pixels.width)
    with _named(image), Image.open(image["path"] if image["bytes"] is None else BytesIO(image["bytes"])) as file:
        width, height = file.size
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        if file.format in ("JPEG", "MPO"):
            _reduce(file, image_size, orientation)
        ImageOps.exif_transpose(file, in_place=True)
        return file, (width, height) if orientation in _QUARTER_TURNS else (height, width)


def _reduce(file: Image.Image, image_size: int, orientation: int) -> None:
    """Have a JPEG decoded at the smallest size whose longer side keeps that many pixels."""
    for factor in (8, 4, 2):
        # What does not divide leaves a part of a pixel at the right and at the bottom, which turning would move.
        divides = orientation == 1 or not any(side % factor for side in file.size)
        if max(file.size) >= factor * image_size and min(file.size) >= factor and divides:
            file.draft("RGB", (file.width // factor, file.height // factor))
            return


@contextmanager
def _named(value: Mapping[str, Any]) -> Iterator[None]:
    """Errors of decoding say which image it was."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingImageError(f"{value['path']}: the image is missing: put it there again") from error
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        name = value["path"] or f"a image of {len(value['bytes'] or b'')} bytes"
        raise BadRowError(f"{name}: the image cannot be decoded ({error}): fetch it again", "image_damaged") from error
