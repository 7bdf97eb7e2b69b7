"""Common row schema (`FEATURES`), row construction and row decoding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps

from .errors import BadRowError, MissingImageError
from .fields import QUARTER_TURNS, sentence_ids
from .masks import decode_mask


class ImageFeature(datasets.Image):
    """`datasets.Image` whose decoding errors name the image.

    It is saved and reloaded as a plain `datasets.Image`, and compares equal to one.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        with _errors_name_image(value):
            return super().decode_example(value, token_per_repo_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None  # type: ignore[assignment]  # like every feature type of `datasets`


FEATURES = datasets.Features(
    {
        # Decoded when a row is read. Cast to `datasets.Image(decode=False)` to get path and bytes.
        "image": ImageFeature(),
        # All expressions that refer to the target, as published (field `sent`); at least one, none of them blank.
        "sentences": [datasets.Value("string")],
        # The targets' pixels as compressed COCO RLE with the image's size [H, W]; see `decode_mask`. Empty only if
        # `no_target` is true.
        "mask": {"size": [datasets.Value("int32")], "counts": datasets.Value("string")},
        "ref_id": datasets.Value("int64"),
        # Annotation id of the first target, or -1 if there is no target.
        "ann_id": datasets.Value("int64"),
        # Annotation ids of all targets.
        "ann_ids": [datasets.Value("int64")],
        # True if the expression refers to nothing in the image (gRefCOCO).
        "no_target": datasets.Value("bool"),
        "image_id": datasets.Value("int64"),
        # One id per sentence, in the order of `sentences`.
        "sent_ids": [datasets.Value("int64")],
        "category_id": datasets.Value("int64"),
        "split": datasets.Value("string"),
        # The source dataset, such as "refcoco"; ids are unique within one dataset only.
        "dataset": datasets.Value("string"),
        # The image's name relative to the dataset's image folder.
        "file_name": datasets.Value("string"),
    }
)


def make_row(
    *,
    image: str | Mapping[str, Any],
    sentences: Sequence[str],
    mask: Mapping[str, Any],
    ref_id: int,
    ann_ids: Sequence[int],
    image_id: int,
    split: str,
    dataset: str,
    file_name: str,
    sent_ids: Sequence[int] | None = None,
    category_id: int = -1,
) -> dict[str, Any]:
    """Return a row with the columns `FEATURES`; every reader builds its rows with this function.

    Args:
        image: path of the image file, or `{"path", "bytes"}`.
        mask: union of the targets' masks as compressed RLE, without foreground if there is no target.
        ann_ids: annotation ids of all targets; empty if the expression refers to nothing in the image.
        sent_ids: one id per sentence; by default derived from `ref_id`.
    """
    return {
        "image": image,
        "sentences": list(sentences),
        "mask": mask,
        "ref_id": ref_id,
        "ann_id": ann_ids[0] if ann_ids else -1,
        "ann_ids": list(ann_ids),
        "no_target": not ann_ids,
        "image_id": image_id,
        "sent_ids": sentence_ids(ref_id, len(sentences)) if sent_ids is None else list(sent_ids),
        "category_id": category_id,
        "split": split,
        "dataset": dataset,
        "file_name": file_name,
    }


def to_dataset(rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """Return an in-memory dataset of rows from `make_row`."""
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def open_image(image: Image.Image | Mapping[str, Any]) -> Image.Image:
    """Decode the `image` of a row and apply its EXIF orientation; the file's color mode is kept.

    Args:
        image: a decoded image, or `{"path", "bytes"}` from a column cast to `datasets.Image(decode=False)`.

    Raises:
        MissingImageError: the file does not exist; also a FileNotFoundError.
        BadRowError: the file cannot be decoded; the message names it.
    """
    return image if isinstance(image, Image.Image) else ImageFeature().decode_example(dict(image))


def decode_row(row: Mapping[str, Any], image_size: int | None = None) -> tuple[Image.Image, np.ndarray]:
    """Decode a row into its upright image and its mask, a uint8 array (H, W) of 0 and 1.

    The mask always has the size of the image file; the image is smaller if `image_size` reduces it.

    Args:
        row: a row with the columns of `FEATURES`; `image` as for `open_image`.
        image_size: minimum length of the longer side in pixels. A JPEG of at least twice that size is decoded at 1/2,
            1/4 or 1/8 of its size (rounded up), the smallest that still has `image_size` pixels, which is much
            faster. None decodes at full size.

    Raises:
        BadRowError: the image or the mask is missing or damaged, their sizes differ, or the mask is empty although
            the row has a target.
    """
    try:
        image, (height, width) = _decode(row["image"], image_size)
    except BadRowError as error:
        raise type(error)(f"{error} (reference {row['ref_id']})", error.kind) from error
    where = f"{row['file_name']}: reference {row['ref_id']}"
    try:
        mask = decode_mask(row["mask"])
    except ValueError as error:
        raise BadRowError(f"{where}: {error}", "mask_malformed") from error
    if mask.shape != (height, width):
        raise BadRowError(
            f"{row['file_name']}: expected a mask of {width}x{height} pixels, the size of the image, got "
            f"{mask.shape[1]}x{mask.shape[0]} for reference {row['ref_id']}; use the images that were annotated",
            "mask_malformed",
        )
    if not row["no_target"] and not mask.any():
        raise BadRowError(f"{where}: the mask is empty; fix it, or mark the row as no_target", "mask_empty")
    return image, mask


def _decode(image: Image.Image | Mapping[str, Any], image_size: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright image and its full size (H, W)."""
    if isinstance(image, Image.Image) or image_size is None or (image["bytes"] is None and "://" in image["path"]):
        decoded = open_image(image)
        return decoded, (decoded.height, decoded.width)
    with (
        _errors_name_image(image),
        Image.open(image["path"] if image["bytes"] is None else BytesIO(image["bytes"])) as file,
    ):
        width, height = file.size
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        if file.format in ("JPEG", "MPO"):
            _reduce(file, image_size, orientation)
        ImageOps.exif_transpose(file, in_place=True)
        return file, (width, height) if orientation in QUARTER_TURNS else (height, width)


def _reduce(file: Image.Image, image_size: int, orientation: int) -> None:
    """Configure a JPEG to decode at the smallest size whose longer side has at least `image_size` pixels."""
    for factor in (8, 4, 2):
        # A side that is not divisible gets a partial pixel at the right or the bottom; rotation would move it.
        divisible = orientation == 1 or not any(side % factor for side in file.size)
        if max(file.size) >= factor * image_size and min(file.size) >= factor and divisible:
            file.draft("RGB", (file.width // factor, file.height // factor))
            return


@contextmanager
def _errors_name_image(value: Mapping[str, Any]) -> Iterator[None]:
    """Convert decoding errors into a BadRowError that names the image."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingImageError(f"{value['path']}: the image is missing; restore the file") from error
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        name = value["path"] or f"an image of {len(value['bytes'] or b'')} bytes"
        raise BadRowError(
            f"{name}: the image cannot be decoded ({error}); download it again", "image_damaged"
        ) from error
