"""Cache for the rows of datasets whose annotations take long to read.

The rows of all splits are built once, by one process, and written into a folder below the cache of `datasets`:

<HF_DATASETS_CACHE>/detris_rows_v1/<key>/rows.arrow      rows of all splits, one after the other, without images
<HF_DATASETS_CACHE>/detris_rows_v1/<key>/index.json      splits, errors and notices
<HF_DATASETS_CACHE>/detris_rows_v1/<key>/manifest.json   checksums: damaged files are built again

The key depends on the contents of the files, not on their paths: a copied or moved dataset uses the same rows. All
processes memory-map the rows, so they share one copy in memory. Nothing that depends on other files is cached, such as
whether an image exists: readers check that whenever they load a split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import datasets
import datasets.config
import datasets.table
import pyarrow as pa

from ...atomic import atomic_write_dir, remove
from ...locks import lock_file
from ...manifest import manifest_problem, write_manifest
from ..errors import BadRowError, BadRows, MissingImageError, collect_notices, notice, reject
from ..schema import FEATURES, to_dataset

# Smaller annotations are read again by every process, which takes at most a second.
MIN_BYTES = 10_000_000
# Increase it when the files of the cache, or the rows that a reader builds from the same files, change.
FORMAT_VERSION = 1

_COLUMNS = datasets.Features({name: feature for name, feature in FEATURES.items() if name != "image"})
_ROWS, _INDEX = "rows.arrow", "index.json"
_CHUNK = 1000  # rows
_MAX_WAIT = 1800  # seconds
_ERROR_CLASSES = {error.__name__: error for error in (BadRowError, MissingImageError)}

T = TypeVar("T")

_shared: ContextVar[dict[Any, Any] | None] = ContextVar("shared", default=None)

logger = logging.getLogger(__name__)


@dataclass
class BuiltRows:
    """What a reader makes of a dataset's files.

    Attributes:
        splits: for each split, its rows from `make_row` and the errors of its invalid rows, in order. `file_name` is
            relative to the image folder; `image` is not kept. Notices are collected while a split is iterated over.
        details: JSON-compatible data for the reader.
    """

    splits: Mapping[str, Iterable[Mapping[str, Any] | BadRowError]]
    details: Any = None


class CachedRows:
    """Rows of all splits, memory-mapped if they are in the cache; see `cached_rows`."""

    def __init__(self, rows: datasets.Dataset, index: Mapping[str, Any], key_files: Sequence[Path]) -> None:
        self._rows = rows
        self._index = index
        # Messages name the files where they were when the rows were built.
        self._paths = dict(zip(index["files"], map(_printable, key_files), strict=True))

    @property
    def splits(self) -> list[str]:
        """Names of the splits, as the reader ordered them."""
        return [*self._index["splits"]]

    @property
    def details(self) -> Any:
        """The `details` of the reader."""
        return self._index["details"]

    def select(self, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        """Return one split with the columns `FEATURES` except `image`; see `add_images`.

        Args:
            split: one of `splits`.
            bad_rows: collects the errors of invalid rows; None raises the first.
        """
        entry = self._index["splits"][split]
        for kind, message in (*self._index["notices"], *entry["notices"]):
            notice(kind, self._moved(message))
        for name, kind, message in entry["errors"]:
            reject(_ERROR_CLASSES[name](self._moved(message), kind), bad_rows)
        # `datasets` rejects an empty range that starts after the last row.
        return self._rows.select(range(entry["start"], entry["end"]) if entry["start"] < entry["end"] else [])

    def _moved(self, message: str) -> str:
        """Return a message with the present paths of the files."""
        if all(old == new for old, new in self._paths.items()):
            return message
        return re.sub("|".join(map(re.escape, self._paths)), lambda match: self._paths[match[0]], message)


def cached_rows(key_files: Sequence[Path], options: Mapping[str, Any], build: Callable[[], BuiltRows]) -> CachedRows:
    """Return the rows of a dataset from the cache, or build them and write them into it.

    Without a cache, the rows are built in memory: if the files have less than `MIN_BYTES` together, and, with a
    warning, if the cache cannot be written. Processes that need rows which another one builds wait for it.

    Args:
        key_files: the files that the rows depend on.
        options: what else they depend on, JSON-compatible: the reader's name, and its options. For files that are too
            many to read here, such as masks: a hash of their names, sizes and modification times.
        build: reads the files; called at most once.

    Raises:
        FileNotFoundError, ValueError, pickle.UnpicklingError: those of `build`.
    """

    def read() -> tuple[datasets.Dataset, dict[str, Any]]:
        if sum(file.stat().st_size for file in key_files) < MIN_BYTES:
            return _build(key_files, build)
        return _read_or_build(key_files, options, build)

    identity = (*map(str, key_files), json.dumps(options, sort_keys=True))
    rows, index = shared(identity, read)
    return CachedRows(rows, index, key_files)


@contextmanager
def share_rows() -> Iterator[None]:
    """Keep what `cached_rows` and `shared` return, so that loading several splits reads the files once.

    Changes of the files in the meantime are ignored.
    """
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def shared(identity: Hashable, read: Callable[[], T]) -> T:
    """Return the result of `read`, which is called once per identity while `share_rows` is active."""
    values = _shared.get()
    if values is None:
        return read()
    if identity not in values:
        values[identity] = read()
    return values[identity]


def is_sharing() -> bool:
    """Return whether `share_rows` is active."""
    return _shared.get() is not None


def add_images(
    rows: datasets.Dataset, image_folder: Path, renamed: Mapping[str, str] | None = None
) -> datasets.Dataset:
    """Return rows of `CachedRows.select` with the column `image`: the paths of the files below a folder.

    Args:
        rows: the rows.
        image_folder: the folder that `file_name` is relative to.
        renamed: replaces file names.
    """
    if not len(rows):
        return to_dataset([])  # `datasets` cannot combine the columns of empty tables
    names, columns = rows["file_name"][:], [rows.data]
    if renamed:
        names = [renamed.get(name, name) for name in names]
        file_names = pa.table({"file_name": pa.array(names, pa.string())})
        columns = [rows.data.drop(["file_name"]), file_names]  # in the order of FEATURES
    paths = {name: str(image_folder / name) for name in set(names)}
    images = [{"bytes": None, "path": paths[name]} for name in names]
    image_column = pa.table({"image": pa.array(images, FEATURES.arrow_schema.field("image").type)})
    table = datasets.table.ConcatenationTable.from_tables([image_column, *columns], axis=1)
    return datasets.Dataset(table, datasets.DatasetInfo(features=FEATURES))


# -- building ---------------------------------------------------------------------------------------------------------


def _build(key_files: Sequence[Path], build: Callable[[], BuiltRows]) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Return the rows, in memory, and their index."""
    batches: list[pa.RecordBatch] = []
    rows: list[Mapping[str, Any]] = []  # of the next batch
    splits, start, end = {}, 0, 0
    with collect_notices() as common:
        built = build()
    for split, items in built.splits.items():
        errors = []
        with collect_notices() as notices:
            for item in items:
                if isinstance(item, BadRowError):
                    errors.append((type(item).__name__, item.kind, str(item)))
                    continue
                rows.append(item)
                end += 1
                if len(rows) == _CHUNK:
                    batches.append(_batch(rows))
                    rows = []
        splits[split] = {"start": start, "end": end, "errors": errors, "notices": notices}
        start = end
    batches.append(_batch(rows))
    index = {
        "files": [_printable(file) for file in key_files],
        "notices": common,
        "splits": splits,
        "details": built.details,
    }
    table = datasets.table.InMemoryTable(pa.Table.from_batches(batches))
    return datasets.Dataset(table, datasets.DatasetInfo(features=_COLUMNS)), index


def _batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{name: row[name] for name in _COLUMNS} for row in rows], _COLUMNS.arrow_schema)


def _printable(file: Path) -> str:
    """Return a path as the message of a `BadRowError` shows it."""
    return str(BadRowError(str(file)))


# -- files of the cache -----------------------------------------------------------------------------------------------


def _read_or_build(
    key_files: Sequence[Path], options: Mapping[str, Any], build: Callable[[], BuiltRows]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    key = _key(key_files, options)
    folder = Path(datasets.config.HF_DATASETS_CACHE, f"detris_rows_v{FORMAT_VERSION}", key)
    found = _read(folder)  # before the lock, which fails on a read-only disk
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(folder.with_suffix(".lock"), _MAX_WAIT))
        except OSError as error:
            _warn(folder, error)
            return _build(key_files, build)
        found = _read(folder)  # another process may have built it
        if found is not None:
            return found
        built = _build(key_files, build)
        if _key(key_files, options) != key:  # a file was replaced while it was read
            return built
        found = _read(folder)  # without file locks, another process may have built it, and use it now
        if found is not None:
            return found
        try:
            _write(folder, *built)
        except OSError as error:
            _warn(folder, error)
        return _read(folder) or built


def _key(key_files: Sequence[Path], options: Mapping[str, Any]) -> str:
    """Return a hash of the contents of the files and of what else the rows depend on."""
    digest = hashlib.blake2b(digest_size=16)
    identity = [
        version("detris-peft"),
        version("pycocotools"),
        str(_COLUMNS),
        [file.name for file in key_files],
        options,
    ]
    digest.update(json.dumps(identity, sort_keys=True).encode())
    for file in key_files:
        content = hashlib.blake2b(digest_size=32)
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def _read(folder: Path) -> tuple[datasets.Dataset, dict[str, Any]] | None:
    """Return the rows, memory-mapped, and their index; None if they are missing or damaged."""
    try:
        if folder.is_symlink() or manifest_problem(folder, (_ROWS, _INDEX)) is not None:
            return None
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return datasets.Dataset.from_file(str(folder / _ROWS), datasets.DatasetInfo(features=_COLUMNS)), index
    except (OSError, ValueError):  # no permission, or the folder was deleted in the meantime
        return None


def _write(folder: Path, rows: datasets.Dataset, index: Mapping[str, Any]) -> None:
    # Damaged. `atomic_write_dir` follows links: one here would replace a folder outside the cache.
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    remove(folder)
    with atomic_write_dir(folder) as staging:
        with (
            pa.OSFile(str(staging / _ROWS), "wb") as sink,
            pa.ipc.new_stream(sink, rows.data.table.schema) as writer,
        ):
            writer.write_table(rows.data.table)
        (staging / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        write_manifest(staging)
    size = sum(file.stat().st_size for file in folder.iterdir())
    logger.info(f"{folder}: wrote {len(rows):,} rows, {size / 1e6:.0f} MB; the folder can be deleted at any time")


def _warn(folder: Path, error: OSError) -> None:
    reason = error.strerror or error
    warnings.warn(
        f"{folder.parent}: expected to write a cache of the dataset's rows, got an error ({reason}); every process "
        "reads the annotations; free disk space, or set HF_DATASETS_CACHE to a folder that can be written.",
        stacklevel=2,
    )
