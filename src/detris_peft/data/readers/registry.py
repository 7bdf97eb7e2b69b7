"""Registry of dataset readers: one reader per format, tried in order.

To add a format, write one module with a subclass of `DatasetReader`, and register it with one line in
`detris_peft.data.readers`. Code outside the package calls `register_reader` directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import datasets

from ..errors import BadRows


class Source(Protocol):
    """The fields of `detris_peft.data.DataSource` that readers use, documented there."""

    dataset: str
    data_root: str
    split_by: str
    image_folder: str | None
    leak: str | None
    columns: str | None
    dataset_config: str | None
    streaming: bool
    format: str | None


class DatasetReader(ABC):
    """Reads one dataset format into rows with the columns `FEATURES`, built by `make_row`."""

    name: str
    # Completes the sentence "expected ...", for error messages.
    accepts: str
    # Options that only some readers have: a field of `DataSource`, or one of its values such as "leak=drop". Setting
    # one of them for a dataset whose reader does not list it is an error.
    options: tuple[str, ...] = ()
    # Name of the format or of the tool that writes it, for users; by default `name`.
    title: str = ""
    # Whether it is an error if another reader detects the same dataset, unless that one is `generic`.
    exclusive: bool = False
    # Whether the reader reads anything that looks like a dataset, if no other reader does.
    generic: bool = False

    @abstractmethod
    def detect(self, source: Source) -> bool:
        """Return whether this reader reads the dataset. Must be cheap: check only names and folder listings."""

    @abstractmethod
    def splits(self, source: Source) -> Iterable[str]:
        """Return the names of the splits, in any order.

        Raises:
            FileNotFoundError, ValueError: the dataset's files are missing or cannot be read.
        """

    @abstractmethod
    def load(
        self, source: Source, split: str, bad_rows: BadRows | None
    ) -> datasets.Dataset | datasets.IterableDataset:
        """Return one split.

        Args:
            split: as named by `splits`.
            bad_rows: collects invalid rows; None raises the first.

        Raises:
            FileNotFoundError, ValueError: the dataset's files or the split are missing, or a row is invalid.
        """

    def tool(self, source: Source) -> str:
        """Return the format that was detected, for users; by default `title`."""
        return self.title or self.name

    def annotation_files(self, source: Source) -> Iterable[Path]:
        """Return the files with the annotations, whose checksums identify the dataset; by default none."""
        return ()

    def shared_images(self, source: Source) -> str | None:
        """Return the reason why splits may share images, or None if they must not."""
        return None


_READERS: list[DatasetReader] = []


def register_reader(reader: DatasetReader, *, before: str | None = None) -> None:
    """Register a reader. If several readers detect a dataset, the first in the registry reads it.

    Args:
        reader: a reader whose `name` is not registered yet.
        before: name of the registered reader to precede; by default the new reader is the last one.

    Raises:
        ValueError: a reader of this name is registered already, or `before` is unknown.
    """
    names = [one.name for one in _READERS]
    if reader.name in names:
        raise ValueError(f"expected a new reader name, got {reader.name!r}, which is registered; rename the reader")
    if before is not None and before not in names:
        raise ValueError(f"expected one of the readers {', '.join(names)}, got before={before!r}; pass one of them")
    _READERS.insert(len(names) if before is None else names.index(before), reader)


def unregister_reader(name: str) -> None:
    """Remove a reader from the registry.

    Raises:
        ValueError: no reader of this name is registered.
    """
    names = [one.name for one in _READERS]
    if name not in names:
        raise ValueError(f"expected one of the readers {', '.join(names)}, got {name!r}; pass one of them")
    del _READERS[names.index(name)]


def registered_readers() -> tuple[DatasetReader, ...]:
    """Return all readers, in the order in which they are tried."""
    return tuple(_READERS)


def find_reader(source: Source) -> DatasetReader | None:
    """Return the reader that `format` names, else the first one that detects the dataset, or None.

    Raises:
        ValueError: no reader has the name, or several formats of which one is exclusive are detected.
    """
    if source.format is not None:
        for reader in _READERS:
            if reader.name == source.format:
                return reader
        names = ", ".join(reader.name for reader in _READERS)
        raise ValueError(f"--format: expected one of {names}, got {source.format}; pass one of them")
    found = [reader for reader in _READERS if reader.detect(source)]
    specific = [reader for reader in found if not reader.generic]
    if len(specific) > 1 and any(reader.exclusive for reader in specific):
        names = " and ".join(reader.title or reader.name for reader in specific)
        options = " or ".join(f"--format {reader.name}" for reader in specific)
        raise ValueError(
            f"{source.dataset}: expected files of one format, got those of {names}; pass {options}, or move the files "
            "of the others"
        )
    return (specific or found or [None])[0]


def candidate_paths(source: Source) -> tuple[Path, Path]:
    """Return the two paths that `dataset` may name: below `data_root`, or as given."""
    return Path(source.data_root, source.dataset), Path(source.dataset)


def dataset_path(source: Source) -> Path | None:
    """Return the existing file or folder that `dataset` names, or None."""
    return next((path for path in candidate_paths(source) if path.exists()), None)


def dataset_folder(source: Source) -> Path:
    """Return the existing folder that `dataset` names.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = dataset_path(source)
    if path is None or not path.is_dir():
        raise FileNotFoundError(
            f"{source.dataset}: expected a folder, found none, also not in {source.data_root}; pass its path"
        )
    return path
