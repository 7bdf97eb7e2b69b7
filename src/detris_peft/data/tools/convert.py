"""Convert any dataset to parquet shards with embedded images and masks; implements `detris data convert`.

<output>/README.md                              dataset card, which maps files to splits
<output>/data/train-00000-of-00002.parquet      the columns `FEATURES`; images are the original files' bytes

`datasets.load_dataset(output)` reads it, and `push_to_hub` or `hf upload` publish it as a dataset on the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ...outputs import MARKER, mark_folder
from ...progress import progress_bar
from ..errors import BadRowError, BadRows, MissingImageError, collect_notices, reject
from ..readers import dataset_path
from ..schema import FEATURES, decode_row
from ..sources import DataSource
from .dataset_card import dataset_card
from .output_folder import check_output, check_split_names, write_folder

# Limits of a row group, and thus of the data in memory: `datasets` reads one row group at a time.
BATCH_BYTES, BATCH_ROWS = 64 << 20, 1000
# A damaged image is found at any size; a small one is decoded faster.
_DECODED_SIZE = 64
_SHARD = re.compile(r"[^/]+-\d{5}-of-\d{5}\.parquet")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def write_parquet(
    source: DataSource,
    output: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    *,
    max_shard_size: int | str = "500MB",
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    allow_outside: bool = False,
    progress: bool = True,
) -> dict[str, int]:
    """Write splits of a dataset as parquet files; `output` is written atomically.

    Every row is checked as in training. An image that is used by several rows of a row group is stored once.

    Args:
        source: the dataset; not a stream.
        output: a new or empty folder.
        splits: the splits to write; by default all.
        max_shard_size: bytes of images per file, as a number or with the unit KB, MB or GB.
        bad_rows: collects the errors of invalid rows, which are skipped; None raises the first.
        overwrite: replace `output` if an earlier conversion wrote it.
        allow_outside: also copy images and masks that are not in the dataset's folder or image folder, because their
            names hold "..", are absolute, or are links. Their content would be published with the dataset.
        progress: show a progress bar.

    Returns:
        The number of rows, keyed by split.

    Raises:
        ValueError: `output` is not empty and `overwrite` is False, or it contains files that were not written by a
            conversion; a file is outside the dataset's folder; or as for `DataSource.load`. A `BadRowError` if a row
            is invalid.
        FileNotFoundError: see `DataSource.load`.
        OSError: `output` cannot be written, for example because the disk is full.
    """
    if source.streaming:
        raise ValueError("--streaming: expected a dataset with random access, got a stream; omit --streaming")
    limit = shard_bytes(max_shard_size)
    check_output(output, overwrite, dataset_path(source), _is_ours)
    output = Path(os.path.realpath(output))
    splits = [*dict.fromkeys(splits or source.splits())]
    check_split_names(splits)
    counts = {}
    with write_folder(output) as staging:
        for split in splits:
            with collect_notices() as notices:
                rows = source.load(split, bad_rows)
            outside = [message for kind, message in notices if kind == "file_outside"]
            if outside and not allow_outside:
                more = f" ({len(outside) - 1:,} more)" if len(outside) > 1 else ""
                raise ValueError(f"{outside[0]}{more}")
            assert isinstance(rows, datasets.Dataset)  # not a stream, as `streaming` is rejected above
            embedded = _embed_images(rows, bad_rows)
            bar = progress_bar(embedded, f"{split}: rows", len(rows), unit="", disable=not progress)
            counts[split] = _write_split(bar, staging / "data", split, limit)
            if not counts[split]:
                raise ValueError(
                    f"{source.dataset} {split}: expected at least one valid row, got none; run `detris data check`"
                )
        (staging / "README.md").write_text(dataset_card(output.name, counts), encoding="utf-8")
        mark_folder(staging, "dataset")
    return counts


def shard_bytes(size: int | str) -> int:
    """Return a number of bytes, given as a number or as text such as "500MB".

    Raises:
        ValueError: the text has another form.
    """
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", size.strip().upper())
    if not match or not float(match[1]):
        raise ValueError(f"max_shard_size: expected a number with KB, MB or GB such as 500MB, got {size!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def _embed_images(rows: datasets.Dataset, bad_rows: BadRows | None) -> Iterator[dict[str, Any]]:
    """Yield the valid rows with the bytes of their images."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    last_path, last_data = None, b""  # rows of one image are usually adjacent
    for index in range(len(rows)):
        row: dict[str, Any] = rows[index]
        path, data = row["image"]["path"], row["image"]["bytes"]
        try:
            decode_row(row, _DECODED_SIZE)
            if data is None:
                data = last_data if path == last_path else _read(path)
                last_path, last_data = path, data
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        # Keep the file name only, because the folder is specific to this machine.
        yield {**row, "image": {"bytes": data, "path": os.path.basename(path or row["file_name"])}}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingImageError(f"{path}: the image is missing; add the file") from None


def _write_split(rows: Iterable[dict[str, Any]], folder: Path, split: str, limit: int) -> int:
    """Write the shards of one split, and return the number of rows."""
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    writer, written, count = None, 0, 0
    try:
        for batch in _batches(rows, min(limit, BATCH_BYTES)):
            # The dictionary of a row group holds each image once.
            size = sum(map(len, {row["image"]["bytes"] for row in batch}))
            if writer is None or written + size > limit:
                if writer is not None:
                    writer.close()
                files.append(folder / f"{split}-{len(files):05}.parquet")
                writer, written = _writer(files[-1]), 0
            writer.write_table(pa.Table.from_pylist(batch, FEATURES.arrow_schema))
            written += size
            count += len(batch)
    finally:
        if writer is not None:
            writer.close()
    for number, file in enumerate(files):
        file.rename(folder / f"{split}-{number:05}-of-{len(files):05}.parquet")
    return count


def _writer(file: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, FEATURES.arrow_schema, dictionary_pagesize_limit=2 * BATCH_BYTES)


def _batches(rows: Iterable[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Group rows into batches of at most `limit` bytes of images, but at least one row."""
    batch, size = [], 0
    for row in rows:
        row_size = len(row["image"]["bytes"])
        if batch and (size + row_size > limit or len(batch) == BATCH_ROWS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_size
    if batch:
        yield batch


def _is_ours(name: str) -> bool:
    """Return whether a conversion writes a file of this name, relative to its output."""
    return name in (MARKER, "README.md") or _SHARD.fullmatch(name.removeprefix("data/")) is not None
