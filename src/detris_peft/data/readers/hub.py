"""Reader for any `datasets` repository or local folder, through a `ColumnMapping`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from ...defaults import IMAGE_FOLDER
from ...progress import no_dataset_bars_in_logs
from ..errors import BadRows, join_names
from ..schema import FEATURES
from .column_mapping import ColumnMapping, example_mapping, look_up, our_split, shipped_mappings
from .hub_files import files_below, open_rows, open_split, repository_splits
from .hub_rows import RowChecker, RowConverter
from .hub_tables import (
    check_stream,
    check_table,
    convert_stream,
    convert_table,
    require_columns,
    stored_rows,
    top_column,
)
from .paths import find_image_folder
from .registry import DatasetReader, Source, dataset_path

_FILE = ".parquet"  # the only suffix of a single file
_SUFFIXES = (_FILE, ".arrow", ".jsonl", ".json", ".csv", ".tar", ".zip")


class HubReader(DatasetReader):
    """Reads user/name on the Hub, .parquet files, and folders of parquet and other files that `datasets` reads."""

    name = "hub"
    title = "Hub dataset or parquet"
    accepts = "a folder of parquet or other files that `datasets.load_dataset` reads, or user/name on the Hub"
    options = ("columns", "streaming", "dataset_config", "image_folder")
    generic = True

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        if path is None:
            return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source.dataset) is not None
        if path.is_file():
            return path.suffix.lower() == _FILE
        return any(file.suffix in _SUFFIXES for file in files_below(path))

    def splits(self, source: Source) -> Iterable[str]:
        return mapped_splits(_location(source), _mapping(source), name=source.dataset_config)

    def load(
        self, source: Source, split: str, bad_rows: BadRows | None
    ) -> datasets.Dataset | datasets.IterableDataset:
        return load_mapped(
            _location(source),
            split,
            _mapping(source),
            name=source.dataset_config,
            image_folder=_image_folder(source),
            streaming=source.streaming,
            bad_rows=bad_rows,
        )


@no_dataset_bars_in_logs()
def load_mapped(
    path: str,
    split: str,
    mapping: ColumnMapping | None = None,
    *,
    name: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    streaming: bool = False,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of a Hub dataset, or of local parquet or other files, with the columns `FEATURES`.

    Images stay in the files of `datasets`: only their headers are read, for their sizes. (With `rows` in the mapping
    they are written to the cache once per reference.) The output of `detris data convert` needs no mapping.

    Args:
        path: a repository or folder that `datasets.load_dataset` reads, a .parquet file, or a folder that
            `save_to_disk` wrote.
        split: our name of the split; see `ColumnMapping.splits`.
        mapping: None if the columns are `FEATURES` already, or if a shipped mapping exists for `path`.
        name: the dataset's configuration, if it has several.
        image_folder: folder of images and mask PNGs if the columns only name them; by default that of `path`.
        streaming: fetch and convert rows one at a time, as they are read. Their `image` stays `{"path", "bytes"}`,
            which `open_image` decodes.
        bad_rows: collects invalid rows; None raises the first. A stream collects them while it is read, in the
            process that reads it.

    Raises:
        OSError: the dataset does not exist, or it cannot be reached.
        ValueError: the split or a column is unknown. A `BadRowError` if a row is invalid.
    """
    mapping = mapping or ColumnMapping.for_repository(path)
    source = open_rows(path, split, mapping, name, streaming)
    if mapping and mapping.split and not streaming:
        found = _named_splits([source], mapping)
        if split not in found and mapping.splits.get(split, split) not in found:
            raise ValueError(
                f"{path}: no split '{split}', expected one of {join_names(found)}, the values of '{mapping.split}'"
            )
    if mapping is None and _has_features(source):
        checker = RowChecker(f"{path} {split}", os.path.abspath(image_folder or _folder(path)), bad_rows, streaming)
        if isinstance(source, datasets.IterableDataset):
            return check_stream(source, checker)
        return check_table(source, checker)
    columns = _columns(source)
    mapping = mapping or _default_mapping(columns, path)
    require_columns(columns, mapping, path)
    converter = RowConverter(mapping, path, split, os.path.abspath(image_folder or _folder(path)), bad_rows, streaming)
    if isinstance(source, datasets.IterableDataset):
        return convert_stream(source, columns, converter)
    return convert_table(source, converter)


@no_dataset_bars_in_logs()
def mapped_splits(path: str, mapping: ColumnMapping | None = None, *, name: str | None = None) -> list[str]:
    """Return our names of the splits that `load_mapped` accepts; errors as for `load_mapped`."""
    mapping = mapping or ColumnMapping.for_repository(path)
    found = repository_splits(path, name)
    if mapping and mapping.split:
        return _named_splits([open_split(path, original, name, streaming=False) for original in found], mapping)
    return sorted(our_split(split, mapping) for split in found)


def _named_splits(parts: list[Any], mapping: ColumnMapping) -> list[str]:
    """Return our names of the splits that the column `mapping.split` names."""
    assert mapping.split is not None
    column = [top_column(mapping.split, part.column_names) for part in parts][:1]
    rows = (row for part in parts for row in stored_rows(part.select_columns(column)))
    values = (look_up(row, mapping.split) for row in rows)
    return sorted({our_split(str(value), mapping) for value in values if value is not None})


def _location(source: Source) -> str:
    """Return the local folder, or the name on the Hub."""
    return str(dataset_path(source) or source.dataset)


def _image_folder(source: Source) -> Path:
    if source.image_folder is not None:
        return find_image_folder(Path(source.data_root), source.image_folder)
    return _folder(dataset_path(source) or Path(source.data_root, IMAGE_FOLDER))


def _folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder unchanged, and the folder of a file."""
    return Path(path).parent if os.path.isfile(path) else Path(path)


def _mapping(source: Source) -> ColumnMapping | None:
    return ColumnMapping.parse(source.columns) if source.columns else None


def _has_features(source: datasets.Dataset | datasets.IterableDataset) -> bool:
    features = source.features or {}
    return all(name in features and features[name] == kind for name, kind in FEATURES.items())


def _default_mapping(columns: list[str], path: str) -> ColumnMapping:
    """Return the mapping of columns that are named as in `FEATURES`, but are incomplete or have other types."""
    if not {"image", "sentences", "mask"} <= set(columns):
        raise ValueError(
            f"{path}: expected the columns image, sentences, mask, got {join_names(columns)}; pass a column mapping, "
            f'for example --columns "{example_mapping(columns)}", or the name of one: {join_names(shipped_mappings())}'
        )
    optional = ("no_target", "ref_id", "ann_id", "image_id", "sent_ids", "category_id", "file_name")
    found: dict[str, Any] = {name: name for name in optional if name in columns}
    return ColumnMapping(mask="mask", **found)


def _columns(source: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Return the column names; a stream without known columns is read up to its first row."""
    return list(source.column_names or next(iter(source), {}))
