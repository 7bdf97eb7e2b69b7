"""Open the splits of a dataset on the Hub, in a local folder, or saved to disk, with their original columns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import datasets.config
from datasets.exceptions import DatasetsError

from ...errors import one_line
from ..errors import join_names
from .column_mapping import ColumnMapping

# `datasets` names the split of val-*.parquet "validation".
_SYNONYMS = {"val": "validation", "validation": "val"}


def open_rows(
    path: str, split: str, mapping: ColumnMapping | None, name: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one split, or all splits concatenated if a column names the split of each row.

    Raises:
        OSError: the dataset does not exist, or it cannot be reached.
        ValueError: the split does not exist, or `datasets` cannot read the files.
    """
    if mapping and mapping.split:
        parts = [open_split(path, original, name, streaming) for original in repository_splits(path, name)]
        return datasets.concatenate_datasets(parts)
    original = mapping.splits.get(split, split) if mapping else split
    try:
        # Listed first: `datasets` downloads everything before it reports a missing split.
        found = repository_splits(path, name)
    except OSError:
        if not datasets.config.HF_HUB_OFFLINE:
            raise
        return open_split(path, original, name, streaming)  # it may be in the cache
    original = original if original in found else _SYNONYMS.get(original, original)
    if original not in found:
        raise ValueError(f"{path}: no split '{split}', expected one of {join_names(found)}")
    return open_split(path, original, name, streaming)


def open_split(path: str, split: str, name: str | None, streaming: bool) -> Any:
    """Open one split by its name in the repository; errors as for `open_rows`."""
    saved = _saved(path)
    if saved is not None:
        return saved[split].to_iterable_dataset() if streaming else saved[split]
    with _errors_name_path(path):
        return datasets.load_dataset(path, name, split=split, streaming=streaming)


def repository_splits(path: str, name: str | None) -> list[str]:
    """Return the splits by their names in the repository; errors as for `open_rows`."""
    saved = _saved(path)
    if saved is not None:
        return list(map(str, saved))
    with _errors_name_path(path):
        return list(map(str, datasets.get_dataset_split_names(path, name)))


@contextmanager
def _errors_name_path(path: str) -> Iterator[None]:
    """Convert errors of `datasets` into one line that starts with the path."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be reached, or is not a dataset: {one_line(error, first_line=True)}") from error
    except (DatasetsError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: `datasets` cannot read it: {one_line(error, first_line=True)}") from error


def _saved(path: str) -> Mapping[Any, datasets.Dataset] | None:
    """Return the splits that `save_to_disk` wrote, or None if the folder was not written by it."""
    if not any(os.path.isfile(os.path.join(path, file)) for file in ("dataset_dict.json", "state.json")):
        return None
    with _errors_name_path(path):
        saved = datasets.load_from_disk(path)
    return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
