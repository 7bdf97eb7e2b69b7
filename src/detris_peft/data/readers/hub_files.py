"""A dataset on the Hub, in a local folder, or saved to disk: its splits, opened as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import datasets.config
from datasets.exceptions import DatasetsError

from .column_mapping import ColumnMapping

# `datasets` renames the split of val-*.parquet.
_SAME = {"val": "validation", "validation": "val"}


def open_rows(
    path: str, split: str, mapping: ColumnMapping | None, name: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """The split as it is there; all splits in a row where a column names the rows' split.

    Raises:
        OSError: there is no such dataset, or it cannot be reached.
        ValueError: there is no such split, or `datasets` cannot read what is there.
    """
    if mapping and mapping.split:
        parts = [open_split(path, one, name, streaming) for one in repository_splits(path, name)]
        return datasets.concatenate_datasets(parts)
    theirs = mapping.splits.get(split, split) if mapping else split
    try:
        found = repository_splits(path, name)  # first: `datasets` would fetch everything before it misses a split
    except OSError:
        if not datasets.config.HF_HUB_OFFLINE:
            raise
        return open_split(path, theirs, name, streaming)  # it may lie in the cache
    theirs = theirs if theirs in found else _SAME.get(theirs, theirs)
    if theirs not in found:
        raise ValueError(f"{path}: no split '{split}': there are {', '.join(found)}")
    return open_split(path, theirs, name, streaming)


def open_split(path: str, split: str, name: str | None, streaming: bool) -> Any:
    """One split, by the repository's own name of it; raises as `open_rows` does."""
    saved = _saved(path)
    if saved is not None:
        return saved[split].to_iterable_dataset() if streaming else saved[split]
    with _in_one_line(path):
        return datasets.load_dataset(path, name, split=split, streaming=streaming)


def repository_splits(path: str, name: str | None) -> list[str]:
    """The splits by the repository's own names; raises as `open_rows` does."""
    saved = _saved(path)
    if saved is not None:
        return list(map(str, saved))
    with _in_one_line(path):
        return list(map(str, datasets.get_dataset_split_names(path, name)))


@contextmanager
def _in_one_line(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be reached, or is no dataset: {_first_line(error)}") from error
    except (DatasetsError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: `datasets` cannot read it: {_first_line(error)}") from error


def _saved(path: str) -> Mapping[Any, datasets.Dataset] | None:
    """What `save_to_disk` wrote there."""
    if not any(os.path.isfile(os.path.join(path, file)) for file in ("dataset_dict.json", "state.json")):
        return None
    with _in_one_line(path):
        saved = datasets.load_from_disk(path)
    return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
