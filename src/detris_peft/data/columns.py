"""The columns that every reader gives, and how a row becomes a picture and a mask."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .bad_rows import BadRowError, MissingPictureError
from .masks import decode_mask


class Picture(datasets.Image):
    """`datasets.Image`, except that a picture which cannot be decoded is named in the error.

    It is stored and reloaded as a plain `datasets.Image`, and is equal to one.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        try:
            return super().decode_example(value, token_per_repo_id)
        except FileNotFoundError as error:
            raise MissingPictureError(f"{value['path']}: the picture is missing: put it there again") from error
        except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ...
            name = value["path"] or f"a picture of {len(value['bytes'] or b'')} bytes"
            raise BadRowError(
                f"{name}: the picture cannot be decoded ({error}): fetch it again", "picture_damaged"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None  # type: ignore[assignment]  # as every feature type of `datasets`


FEATURES = datasets.Features(
    {
        # Decoded when a row is read, never before; cast to `datasets.Image(decode=False)` to get path and bytes.
        "image": Picture(),
        # Every sentence that refers to the target, as published (field `sent`); at least one, none blank.
        "sentences": [datasets.Value("string")],
        # The targets' pixels as compressed COCO RLE at the picture's size [H, W]; see `decode_mask`. Empty only where
        # `no_target` says so.
        "mask": {"size": [datasets.Value("int32")], "counts": datasets.Value("string")},
        "ref_id": datasets.Value("int64"),
        # Of the first target, -1 where there is none; and of all targets.
        "ann_id": datasets.Value("int64"),
        "ann_ids": [datasets.Value("int64")],
        # The sentence refers to nothing in the picture (gRefCOCO).
        "no_target": datasets.Value("bool"),
        "image_id": datasets.Value("int64"),
        # One id per sentence, in the order of `sentences`.
        "sent_ids": [datasets.Value("int64")],
        "category_id": datasets.Value("int64"),
        "split": datasets.Value("string"),
        # The set the row comes from, such as "refcoco"; ids are unique within one set only.
        "dataset": datasets.Value("string"),
        # The picture's name in the data set's picture folder.
        "file_name": datasets.Value("string"),
    }
)


def open_image(image: Image.Image | Mapping[str, Any]) -> Image.Image:
    """The picture of a row's `image`, decoded and turned upright (EXIF), in the file's own mode.

    Args:
        image: a decoded picture, or `{"path", "bytes"}` as a column cast to `datasets.Image(decode=False)` holds it.

    Raises:
        MissingPictureError: the file is gone; a FileNotFoundError too.
        BadRowError: the file cannot be decoded; the message names it.
    """
    return image if isinstance(image, Image.Image) else Picture().decode_example(dict(image))


def decode_row(row: Mapping[str, Any]) -> tuple[Image.Image, np.ndarray]:
    """A row's picture and its targets' mask, (H, W) of uint8 0/1, made sure to be of one size.

    Raises:
        BadRowError: picture or mask is missing or damaged, they differ in size, or the mask is empty though the row
            has a target.
    """
    image, where = open_image(row["image"]), f"{row['file_name']}: reference {row['ref_id']}"
    try:
        mask = decode_mask(row["mask"])
    except ValueError as error:
        raise BadRowError(f"{where}: {error}", "mask_malformed") from error
    if mask.shape != (image.height, image.width):
        raise BadRowError(
            f"{row['file_name']}: the picture is {image.width}x{image.height} pixels but the mask of reference "
            f"{row['ref_id']} is {mask.shape[1]}x{mask.shape[0]}: use the pictures that the annotations were made on",
            "mask_malformed",
        )
    if not row["no_target"] and not mask.any():
        raise BadRowError(f"{where}: the mask is empty: mend it, or mark the row as no_target", "mask_empty")
    return image, mask
