"""The images of a dataset with their references, read and hashed once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets

from .... import images
from ....image_inputs import to_rgb
from ...errors import BadRowError, BadRows, MissingImageError, reject
from ...schema import check_fields, check_mask
from .perceptual_hash import ImageHash, hash_image

# A JPEG is decoded at a fraction of its size, which is much faster. Damage is found at any size.
_DECODED_SIZE = 64
_BATCH = 16  # images per thread in memory

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Content:
    """What is known of an image's file.

    Args:
        digest: of the file's bytes.
        hash: perceptual hash of the upright image.
        size: (H, W) of the upright image in pixels.
        suffix: of a file of this format, such as ".jpeg".
    """

    digest: str
    hash: ImageHash
    size: tuple[int, int]
    suffix: str


@dataclass
class SourceImage:
    """An image and its valid rows.

    Args:
        name: as the dataset names it.
        rows: split and index of each row, in the order of the dataset.
        content: of its file.
    """

    name: str
    rows: list[tuple[str, int]]
    content: Content


class SourceImages:
    """The images of some splits of a dataset; `len` is their number.

    Args:
        tables: rows with the columns `FEATURES`, keyed by split.
    """

    def __init__(self, tables: Mapping[str, datasets.Dataset]) -> None:
        self._images = {
            split: rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
            for split, rows in tables.items()
        }
        self._rows = {split: rows.remove_columns("image") for split, rows in tables.items()}
        self._found = self._find_images()

    def __len__(self) -> int:
        return len(self._found)

    def row(self, split: str, index: int) -> dict[str, Any]:
        """Return a row without its image."""
        return self._rows[split][index]

    def file(self, split: str, index: int) -> Path | bytes:
        """Return the path of the image of a row, or its bytes if the dataset holds them."""
        stored = self._images[split][index]["image"]
        return Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]

    def read(self, num_workers: int, bad_rows: BadRows | None) -> Iterator[SourceImage]:
        """Read and hash each image, check its rows, and yield the images that have a valid row.

        Args:
            num_workers: number of threads.
            bad_rows: collects the errors of invalid rows, which are skipped; None raises the first.
        """
        files = ((rows, self.file(*rows[0])) for rows in self._found)
        for (rows, _), content in map_in_threads(_read, files, num_workers):
            valid = []
            for position in rows:
                try:
                    self._check(self.row(*position), content)
                except BadRowError as error:
                    reject(error, bad_rows)
                    continue
                valid.append(position)
            if valid and isinstance(content, Content):
                yield SourceImage(self.row(*rows[0])["file_name"], valid, content)

    def _check(self, row: Mapping[str, Any], content: Content | BadRowError) -> None:
        check_fields(row)
        if isinstance(content, BadRowError):
            raise type(content)(f"{content} (reference {row['ref_id']})", content.kind)
        check_mask(row, content.size)

    def _find_images(self) -> list[list[tuple[str, int]]]:
        """Return the rows of each image."""
        found: dict[str | bytes, list[tuple[str, int]]] = {}
        for split, images_of_split in self._images.items():
            index = 0
            for table in images_of_split.with_format("arrow").iter(batch_size=100):
                for stored in table["image"].to_pylist():  # type: ignore[index]  # a pyarrow table
                    data = stored["bytes"]
                    key = stored["path"] if data is None else hashlib.blake2b(data, digest_size=16).digest()
                    found.setdefault(key, []).append((split, index))
                    index += 1
        return [*found.values()]


def map_in_threads(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[tuple[T, R]]:
    """Yield each item with the function's result, in order; only a few items are in memory at a time."""
    items = iter(items)
    with ThreadPoolExecutor(max(num_workers, 1)) as threads:
        while batch := list(itertools.islice(items, _BATCH * max(num_workers, 1))):
            yield from zip(batch, threads.map(function, batch), strict=True)


def _read(item: tuple[Any, Path | bytes]) -> Content | BadRowError:
    file = item[1]
    name = images.default_name(file)
    try:
        return _content(file if isinstance(file, bytes) else file.read_bytes(), name)
    except FileNotFoundError:
        return MissingImageError(f"{name}: the image is missing; add the file")
    except OSError as error:
        return BadRowError(f"{name}: the image cannot be read ({error.strerror}); check the file", "image_damaged")
    except ValueError as error:
        return BadRowError(str(error).removesuffix("."), "image_damaged")


def _content(data: bytes, name: str) -> Content:
    with images.open_header(data, name) as file:
        size, suffix = images.upright_size(file), f".{str(file.format).lower()}"
        if file.format in ("JPEG", "MPO"):
            file.draft(None, (_DECODED_SIZE, _DECODED_SIZE))
        pixels = to_rgb(images.decode(file, name), name)
    return Content(hashlib.blake2b(data, digest_size=16).hexdigest(), hash_image(pixels), size, suffix)
