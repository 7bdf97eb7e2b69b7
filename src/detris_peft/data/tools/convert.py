"""Any dataset as parquet shards with images and masks inside: the work of `detris data convert`.

<output>/README.md                              dataset card; says which files are which split
<output>/data/train-00000-of-00002.parquet      the columns `FEATURES`; images are the files' own bytes

`datasets.load_dataset(output)` reads it, and `push_to_hub` or `hf upload` make it a dataset on the Hub.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..errors import BadRowError, BadRows, MissingImageError, reject
from ..fields import upright_size
from ..schema import FEATURES
from ..sources import DataSource
from .dataset_card import dataset_card

# What is in memory at a time, and a row group: `datasets` reads one at a time.
BATCH_BYTES, BATCH_ROWS = 64 << 20, 1000
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
    progress: bool = True,
) -> dict[str, int]:
    """Write splits of a dataset as parquet; `output` is there whole or not at all.

    Images are not decoded (`check_data` does that), but their headers are read: each must be as large as its masks.
    A image of several rows is stored once in a row group.

    Args:
        source: any but a stream.
        output: a folder, new or empty.
        splits: by default all.
        max_shard_size: bytes of images in a file, as a number or with the unit KB, MB or GB.
        bad_rows: collects what cannot be trained on and leaves it out; None stops at the first such row.
        overwrite: replace `output`, if an earlier conversion wrote it.
        progress: show a bar.

    Returns:
        The number of rows by split.

    Raises:
        FileExistsError: `output` is there and not empty, or holds files that no conversion wrote.
        ValueError, FileNotFoundError: see `DataSource.load`; as `BadRowError`, a row is bad.
        OSError: the disk is full or cannot be written.
    """
    if source.streaming:
        raise ValueError("--streaming cannot be converted: leave it out")
    output, limit = Path(os.path.abspath(output)), shard_bytes(max_shard_size)
    splits = [*dict.fromkeys(splits or source.splits())]
    for split in splits:
        if not re.fullmatch(r"\w+(\.\w+)*", split):
            raise ValueError(f"split '{split}': `datasets` allows letters, digits, '_' and '.' in a name: rename it")
    _require_replaceable(output, overwrite)
    counts = {}
    with _in_place_of(output) as aside:
        for split in splits:
            rows = source.load(split, bad_rows)
            assert isinstance(rows, datasets.Dataset)  # `streaming` was refused
            stored = _stored(rows, bad_rows)
            bar = tqdm(stored, f"{split}: rows", len(rows), unit="", leave=False, disable=not progress)
            counts[split] = _write_split(bar, aside / "data", split, limit)
            if not counts[split]:
                raise ValueError(f"{source.dataset} {split}: no good row is left: see what `detris data check` says")
        (aside / "README.md").write_text(dataset_card(output.name, counts), encoding="utf-8")
    return counts


def shard_bytes(size: int | str) -> int:
    """Bytes from a number, or from text such as "500MB".

    Raises:
        ValueError: it is neither.
    """
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", size.strip().upper())
    if not match or not float(match[1]):
        raise ValueError(f"max_shard_size is {size!r}: give a number with KB, MB or GB, as in 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def _stored(rows: datasets.Dataset, bad_rows: BadRows | None) -> Iterator[dict[str, Any]]:
    """Rows with their images' bytes."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    last_path, last_data = None, b""  # rows of one image mostly follow each other
    for index in range(len(rows)):
        row: dict[str, Any] = rows[index]
        path, data = row["image"]["path"], row["image"]["bytes"]
        where = f"{row['split']}: reference {row['ref_id']}"
        try:
            if data is None:
                data = last_data if path == last_path else _read(path, where)
                last_path, last_data = path, data
            size = upright_size({"path": path, "bytes": data}, where)
            if [*size] != row["mask"]["size"]:
                raise BadRowError(
                    f"{where}: {path or row['file_name']} is {size[1]}x{size[0]} pixels, its mask "
                    f"{row['mask']['size'][1]}x{row['mask']['size'][0]}: use the images that were annotated",
                    "mask_malformed",
                )
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        # Only the name: the path is this machine's.
        yield {**row, "image": {"bytes": data, "path": os.path.basename(path or row["file_name"])}}


def _read(path: str, where: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingImageError(f"{where}: {path} is missing: put the image there") from None


def _write_split(rows: Iterable[dict[str, Any]], folder: Path, split: str, limit: int) -> int:
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    writer, written, count = None, 0, 0
    try:
        for batch in _batches(rows, min(limit, BATCH_BYTES)):
            # A row group keeps a dictionary of images, so that each is in it once.
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
    """Rows of together at most `limit` bytes of images, but at least one."""
    batch, size = [], 0
    for row in rows:
        more = len(row["image"]["bytes"])
        if batch and (size + more > limit or len(batch) == BATCH_ROWS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += more
    if batch:
        yield batch


def _require_replaceable(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{output}: is a file: name a folder")
    files = [file.relative_to(output).as_posix() for file in output.rglob("*") if not file.is_dir()]
    if files and not overwrite:
        raise FileExistsError(f"{output}: is there already and holds {files[0]}: name another, or pass --overwrite")
    # A slip such as --output data must not cost the data.
    foreign = [name for name in files if name != "README.md" and not _SHARD.fullmatch(name.removeprefix("data/"))]
    if foreign:
        raise FileExistsError(f"{output}: holds {min(foreign)}, which no conversion wrote: name another folder")


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A folder aside that becomes `folder` when the block ends well, and vanishes when it does not."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise type(error)(
            f"{folder}: cannot be written ({error.strerror}: {error.filename}): name another folder"
        ) from None
    try:
        new = place / "new"  # with the usual permissions, unlike a temporary folder
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(place / "old")
        new.rename(folder)
    except OSError as error:
        reading = error.filename and not str(error.filename).startswith(str(place))
        if error.errno is None or reading:  # of the source, which says what is wrong
            raise
        raise OSError(
            f"{folder}: cannot be written ({error.strerror or error}): make room or name another folder; nothing was "
            "left behind"
        ) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
