"""Find images that two splits share, whatever their names are."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets


def shared_images(first: datasets.Dataset, second: datasets.Dataset) -> list[tuple[str, str]]:
    """Return the names of images whose files are equal byte for byte, as (name in first, name in second).

    Only images of the same size in bytes are read.

    Args:
        first, second: datasets with the columns of `FEATURES`.
    """
    first, second = _names_and_images(first), _names_and_images(second)
    first_by_size, second_by_size = _rows_by_size(first), _rows_by_size(second)
    shared = {}
    for size in first_by_size.keys() & second_by_size.keys():
        names = {_digest(first[index]): first[index]["file_name"] for index in first_by_size[size]}
        for index in second_by_size[size]:
            digest = _digest(second[index])
            if digest in names:
                shared[digest] = (names[digest], second[index]["file_name"])
    return sorted(shared.values())


def _names_and_images(rows: datasets.Dataset) -> Any:
    return rows.select_columns(["image", "file_name"]).cast_column("image", datasets.Image(decode=False))


def _rows_by_size(rows: datasets.Dataset) -> dict[int, list[int]]:
    """Return the first row of each image file, and the rows with embedded images, by the image's size in bytes."""
    by_size: dict[int, list[int]] = defaultdict(list)
    paths: dict[str, int] = {}
    index = 0
    for table in rows.with_format("arrow").iter(batch_size=100):
        for image in table["image"].to_pylist():  # type: ignore[index]  # a pyarrow table
            if image["bytes"] is None:
                paths.setdefault(image["path"], index)
            else:
                by_size[len(image["bytes"])].append(index)
            index += 1
    with ThreadPoolExecutor(8) as threads:  # on a network drive, most of the time is latency
        for index, size in zip(paths.values(), threads.map(_file_size, paths), strict=True):
            if size is not None:
                by_size[size].append(index)
    return by_size


def _file_size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # reported when the row is read
        return None


def _digest(row: dict[str, Any]) -> str:
    image = row["image"]
    data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return hashlib.sha256(data).hexdigest()
