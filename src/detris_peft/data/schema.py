"""Common row schema (`FEATURES`), row construction and row decoding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .. import images
from ..jpeg import decode_pixels
from .errors import BadRowError, MissingImageError, short
from .fields import FOREGROUND_WITHOUT_TARGET, check_sentence, check_text, sentence_ids
from .masks import decode_mask


class ImageFeature(datasets.Image):
    """`datasets.Image` that decodes known image formats only, opens no URLs, and names the image in its errors.

    It is saved and reloaded as a plain `datasets.Image`, and compares equal to one.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        image = open_image(value)
        return image.convert(self.mode) if self.mode and self.mode != image.mode else image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None  # type: ignore[assignment]  # like every feature type of `datasets`


FEATURES = datasets.Features(
    {
        # Decoded when a row is read. Cast to `datasets.Image(decode=False)` to get path and bytes.
        "image": ImageFeature(),
        # All expressions that refer to the target, as published (field `sent`); at least one, none of them blank.
        "sentences": [datasets.Value("string")],
        # The targets' pixels as compressed COCO RLE with the image's size [H, W]; see `decode_mask`. Without
        # foreground if `no_target` is true, and only then.
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

    Raises:
        BadRowError: a sentence is blank, or a field cannot be stored in its column.
    """
    row = {
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
    check_fields(row)
    return row


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
    return _decode(image, None)[0]  # type: ignore[return-value]


def decode_row(
    row: Mapping[str, Any], image_size: int | None = None, as_array: bool = False
) -> tuple[Image.Image | np.ndarray, np.ndarray]:
    """Decode a row into its upright image and its mask, a uint8 array (H, W) of 0 and 1.

    The mask always has the size of the image file; the image is smaller if `image_size` reduces it.

    Args:
        row: a row with the columns of `FEATURES`; `image` as for `open_image`.
        image_size: minimum length of the longer side in pixels. A JPEG of at least twice that size is decoded at 1/2,
            1/4 or 1/8 of its size (rounded up), the smallest that still has `image_size` pixels, which is much
            faster. None decodes at full size.
        as_array: return the image as RGB, uint8 (H, W, 3), if `decode_pixels` decodes it, which is faster.

    Raises:
        BadRowError: a sentence is blank, the image or the mask is missing or damaged, their sizes differ, or the mask
            is empty although the row has a target.
    """
    check_fields(row)
    with _errors_name_reference(row):
        image, size = _decode(row["image"], image_size, as_array)
    return image, check_mask(row, size)


def check_row(row: Mapping[str, Any]) -> None:
    """Check a row as `decode_row` does, but read only the header of the image.

    Raises:
        BadRowError: see `decode_row`.
    """
    check_fields(row)
    with _errors_name_reference(row), _open_header(row["image"]) as header:
        size = images.upright_size(header)
    check_mask(row, size)


def check_mask(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a row, a uint8 array (H, W) of 0 and 1, given the size (H, W) of its upright image.

    Raises:
        BadRowError: the mask is damaged, has another size, or is empty although the row has a target.
    """
    where = f"{row['file_name']}: reference {row['ref_id']}"
    if not isinstance(row["mask"], Mapping):
        raise BadRowError(f"{where}: expected a mask, got {short(row['mask'])}; add it", "mask_malformed")
    found = tuple(row["mask"]["size"] or ())
    if len(found) == 2 and found != size:
        swapped = ", with height and width swapped" if found == size[::-1] else ""
        raise BadRowError(
            f"{row['file_name']}: expected a mask of {size[1]}x{size[0]} pixels, the size of the image, got "
            f"{found[1]}x{found[0]}{swapped} for reference {row['ref_id']}; use the images that were annotated",
            "mask_malformed",
        )
    try:
        mask = decode_mask(row["mask"])
    except ValueError as error:
        raise BadRowError(f"{where}: {error}", "mask_malformed") from error
    if row["no_target"] and mask.any():
        raise BadRowError(f"{where}: {FOREGROUND_WITHOUT_TARGET}", "mask_malformed")
    if not row["no_target"] and not mask.any():
        raise BadRowError(f"{where}: the mask is empty; fix it, or mark the row as no_target", "mask_empty")
    return mask


def check_fields(row: Mapping[str, Any]) -> None:
    """Check the sentences, texts and ids of a row.

    Raises:
        BadRowError: one of them is invalid; the message names the row.
    """
    where = f"{row['file_name']}: reference {short(row['ref_id'])}"
    if not row["sentences"]:
        raise BadRowError(f"{where}: expected a sentence, got none; add one")
    for sentence in row["sentences"]:
        check_sentence(sentence, where)
    for name in ("split", "dataset", "file_name"):
        check_text(str(row[name]), f"{where}: '{name}'")
    numbers = (row["ref_id"], row["image_id"], row["category_id"], *row["ann_ids"], *row["sent_ids"])
    for number in numbers:
        if not isinstance(number, Integral) or not -(2**63) <= number < 2**63:
            raise BadRowError(f"{where}: expected ids that are 64-bit integers, got {short(number)}; change the id")


def _open_header(image: Any) -> Image.Image:
    """Open the `{"path", "bytes"}` of a row without decoding the pixels."""
    if not isinstance(image, Mapping) or not (image.get("bytes") or image.get("path")):
        raise BadRowError(f"expected an image, got {short(image)}; add it", "image_missing")
    with _bad_rows(image):
        return images.open_header(image["bytes"] or image["path"], _name(image))


def _name(image: Mapping[str, Any]) -> str:
    return image["path"] or images.default_name(image["bytes"])


def _decode(
    image: Any, image_size: int | None, as_array: bool = False
) -> tuple[Image.Image | np.ndarray, tuple[int, int]]:
    """Return the upright image and its full size (H, W)."""
    if isinstance(image, Image.Image):
        return image, (image.height, image.width)
    with _open_header(image) as file, _bad_rows(image):
        size, reduction = images.upright_size(file), 1
        if image_size is not None and file.format in ("JPEG", "MPO"):
            reduction = _reduction(file, image_size, images.orientation(file))
        pixels = decode_pixels(file, reduction) if as_array else None
        if pixels is not None:
            return pixels, size
        if reduction > 1:
            file.draft("RGB", (file.width // reduction, file.height // reduction))
        return images.decode(file, _name(image)), size


def _reduction(file: Image.Image, image_size: int, orientation: int) -> int:
    """Return the largest factor by which a JPEG can be reduced if its longer side keeps `image_size` pixels."""
    for factor in (8, 4, 2):
        # A side that is not divisible gets a partial pixel at the right or the bottom; rotation would move it.
        divisible = orientation == 1 or not any(side % factor for side in file.size)
        if max(file.size) >= factor * image_size and min(file.size) >= factor and divisible:
            return factor
    return 1


@contextmanager
def _bad_rows(image: Mapping[str, Any]) -> Iterator[None]:
    """Convert errors about an image into a `BadRowError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingImageError(f"{image['path']}: the image is missing; restore the file") from error
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "image_damaged") from error


@contextmanager
def _errors_name_reference(row: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except BadRowError as error:
        raise type(error)(f"{error} (reference {row['ref_id']})", error.kind) from error
