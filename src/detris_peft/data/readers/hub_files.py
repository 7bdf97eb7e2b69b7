"""Open the splits of a dataset on the Hub, in a local folder, or saved to disk, with their original columns."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from datasets.data_files import get_data_patterns, sanitize_patterns
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError, DatasetsError
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

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
        return datasets.load_dataset(_builder(path), name, split=split, streaming=streaming, **_options(path, name))


def repository_splits(path: str, name: str | None) -> list[str]:
    """Return the splits by their names in the repository; errors as for `open_rows`."""
    saved = _saved(path)
    if saved is not None:
        return list(map(str, saved))
    with _errors_name_path(path):
        return list(map(str, datasets.get_dataset_split_names(_builder(path), name, **_options(path, name))))


def files_below(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield all files below a folder except hidden ones; links to folders are followed."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        identity = os.path.realpath(parent)
        if identity in visited:  # a link to one of its parents
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _builder(path: str) -> str:
    """Return what `datasets` calls the format of a single file; a folder or a name on the Hub unchanged."""
    return "parquet" if os.path.isfile(path) else path


def _options(path: str, name: str | None) -> dict[str, Any]:
    """Return arguments for `datasets` with which it reads exactly the local folder or file, in its present state."""
    if os.path.isfile(path):
        return {"cache_dir": _cache_folder(path), "data_files": {"train": glob.escape(os.path.realpath(path))}}
    if not os.path.isdir(path):
        return {}
    options: dict[str, Any] = {"cache_dir": _cache_folder(path)}
    folder = os.path.realpath(path)
    if glob.has_magic(folder):  # `datasets` would read all folders that match it as a pattern
        options["data_files"] = {
            str(split): [os.path.join(glob.escape(folder), pattern) for pattern in patterns]
            for split, patterns in _patterns(folder, name).items()
        }
    return options


def _patterns(folder: str, name: str | None) -> Mapping[Any, list[str]]:
    """Return the file patterns of each split: those in the README.md of the folder, or those of its file names."""
    card = os.path.join(folder, "README.md")
    if os.path.isfile(card):
        data: Any = DatasetCard.load(card).data
        configs = MetadataConfigs.from_dataset_card_data(data)
        config = configs.get(name or configs.get_default_config_name() or "default", {})
        if "data_files" in config:
            return sanitize_patterns(config["data_files"])
    return get_data_patterns(glob.escape(folder))


def _cache_folder(path: str) -> str:
    """Return a cache folder for the present content of a local folder or file.

    `datasets` recognizes a changed file by its modification time only, which copies and unpacked archives may keep.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in [Path(path)] if os.path.isfile(path) else files_below(path):
        status = os.stat(file) if os.path.exists(file) else os.lstat(file)
        identity = (str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(repr(identity).encode("utf-8", "surrogateescape"))
    return os.path.join(datasets.config.HF_DATASETS_CACHE, f"detris-{digest.hexdigest()}")


@contextmanager
def _errors_name_path(path: str) -> Iterator[None]:
    """Convert errors of `datasets` into one line that starts with the path, or with the cache if that is the cause."""
    try:
        yield
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, OSError):
            cause = cause.__cause__  # "An error occurred while generating the dataset" says nothing
        reason = one_line(cause, first_line=True)
        if isinstance(cause, OSError) and _is_about_cache(cause):
            cache = datasets.config.HF_DATASETS_CACHE
            raise OSError(
                f"{cache}: the cache of `datasets` cannot be written ({cause.strerror or reason}); free disk space, "
                "or set HF_HOME to a folder that can be written"
            ) from error
        if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
            raise ValueError(f"{path}: expected at least one row, got an empty split ({reason}); add rows") from error
        if os.path.exists(path):
            fix = "pass another folder" if isinstance(cause, DataFilesNotFoundError) else "write the files again"
            if isinstance(cause, UnicodeDecodeError):
                fix = "save the files as UTF-8, or pass one file as --dataset, in any encoding"
            raise ValueError(f"{path}: `datasets` cannot read it: {reason}; {fix}") from error
        if isinstance(cause, OSError):
            raise OSError(
                f"{path}: cannot be reached, or is not a dataset: {reason}; there is no such folder either; "
                f"{_hub_fix(cause)}"
            ) from error
        raise ValueError(f"{path}: `datasets` cannot read it: {reason}; use another dataset or revision") from error


def _is_about_cache(error: OSError) -> bool:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    cache = Path(datasets.config.HF_DATASETS_CACHE).absolute()
    if error.errno is None or not isinstance(error.filename, (str, os.PathLike)):
        return False
    file = Path(error.filename).absolute()
    return file.is_relative_to(cache) or file in cache.parents


def _hub_fix(error: OSError) -> str:
    if datasets.config.HF_HUB_OFFLINE:
        return "fix the name, or unset HF_HUB_OFFLINE to download it"
    if isinstance(error, DatasetNotFoundError):
        return "fix the name, or log in with `hf auth login` if it is private or gated"
    return "check the network, and the name"


def _saved(path: str) -> Mapping[Any, datasets.Dataset] | None:
    """Return the splits that `save_to_disk` wrote, or None if the folder was not written by it."""
    if not any(os.path.isfile(os.path.join(path, file)) for file in ("dataset_dict.json", "state.json")):
        return None
    try:
        with _errors_name_path(path):
            saved = datasets.load_from_disk(path)
    except (AttributeError, LookupError, TypeError) as error:  # no rows, or other content in its JSON files
        raise ValueError(
            f"{path}: expected rows as `save_to_disk` writes them, got none or other content ({error!r}); save "
            "it again"
        ) from error
    return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
