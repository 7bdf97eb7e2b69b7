"""Dataset options shared by all commands; the registry of readers selects the reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import recover
from ..defaults import IMAGE_FOLDER
from .errors import BadRows

if TYPE_CHECKING:  # `--help` shows the options that are declared here, and must not import `datasets`
    import datasets

    from .readers import DatasetReader

_ORDER = ("train", "validation", "val", "test", "testA", "testB")


@dataclass
class DataSource:
    """A dataset, given by its name or path; the fields are command-line options."""

    dataset: str = field(
        default="refcoco",
        metadata={
            "help": "a folder in data_root (refcoco, refcoco+, refcocog, refclef, grefcoco, refshapes), mixed, any "
            "folder with metadata.jsonl, the export of a labeling tool (a folder or file; {split} in the name of a "
            "COCO .json file is replaced by the split), a .csv, .tsv, .jsonl or .parquet file, or user/name on the Hub"
        },
    )
    data_root: str = field(default="data", metadata={"help": "folder that holds the datasets and images/"})
    split_by: str = field(default="unc", metadata={"help": "split provenance: unc, umd or google"})
    image_folder: str | None = field(
        default=None,
        metadata={
            "help": f"folder of the images, below data_root or from the working directory; by default "
            f"{IMAGE_FOLDER}, or the folder of an export (for COCO, {{split}} is replaced by the split)"
        },
    )
    leak: str | None = field(
        default=None,
        metadata={
            "help": "training images that are also in a val or test split: keep trains on them, drop (mixed only, its "
            "default) excludes them; without this option, training stops with an error"
        },
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "column mapping of a Hub dataset or a table: a shipped mapping's name, a YAML file, or "
            "image=img,sentences=caption,mask=..."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Hub only: the dataset's configuration, if it has several"}
    )
    format: str | None = field(
        default=None,
        metadata={"help": "format of the dataset, if it is not detected: coco, labelme, ...; a wrong one lists all"},
    )
    streaming: bool = field(default=False, metadata={"help": "Hub or parquet only: read rows on demand"})

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("--dataset: expected a dataset, got an empty name; pass one.")
        # Shells complete folder names with a slash.
        self.dataset = self.dataset.rstrip("/") or self.dataset

    def load(self, split: str, bad_rows: BadRows | None = None) -> datasets.Dataset | datasets.IterableDataset:
        """Load one split with the columns `FEATURES`; an `IterableDataset` if `streaming` is set.

        Args:
            split: "train", "val", "testA", ..., as named by the dataset.
            bad_rows: collects invalid rows; None raises the first.

        Raises:
            FileNotFoundError, ValueError: the dataset or split does not exist, or a row is invalid; the message lists
                what was found and what is accepted.
        """
        reader = self.reader()
        self._check_options(reader)
        return reader.load(self, split, bad_rows)

    def load_valid(self, split: str, bad_rows: BadRows | None) -> datasets.Dataset | datasets.IterableDataset:
        """Load one split as `load` does; raise a ValueError as well if every row is invalid."""
        import datasets

        earlier = len(bad_rows or ())
        rows = self.load(split, bad_rows)
        if bad_rows is not None and isinstance(rows, datasets.Dataset) and not len(rows) and len(bad_rows) > earlier:
            raise ValueError(
                f"{self.dataset} {split}: expected at least one valid row, got {len(bad_rows) - earlier} invalid; "
                f"fix them, the first is: {bad_rows[earlier]}"
            )
        return rows

    def splits(self) -> list[str]:
        """Return the dataset's splits: train, val and test first, others in alphabetical order.

        Raises:
            FileNotFoundError, ValueError: the dataset does not exist, it has no rows, or its files cannot be read.
        """
        reader = self.reader()
        self._check_options(reader)
        found = _sorted(reader.splits(self))
        if not found:
            raise ValueError(f"{self.dataset}: expected at least one row, got an empty dataset; add rows")
        return found

    def may_leak(self) -> str | None:
        """Return the reason why splits may share images, or None if they must not."""
        return "leak=keep" if self.leak == "keep" else self.reader().shared_images(self)

    def reader(self) -> DatasetReader:
        """Return the reader of the dataset.

        Raises:
            FileNotFoundError, ValueError: the dataset does not exist, or its format is unknown or ambiguous.
        """
        from .readers import candidate_paths, dataset_path, find_reader, registered_readers

        for path in candidate_paths(self):
            if not path.exists():
                recover(path)  # `detris data convert` may have been killed while it replaced the folder
        reader = find_reader(self)
        if reader is not None:
            return reader
        root, path = Path(self.data_root), dataset_path(self)
        accepted = ", ".join(candidate.title or candidate.name for candidate in registered_readers())
        if path is not None and path.is_dir():
            found = _shortened(entry.name for entry in path.iterdir())
            raise FileNotFoundError(
                f"{path}: expected a dataset, got a folder with {found}; pass one of these formats, laid out as in "
                f"docs/your-own-data.md: {accepted}"
            )
        if path is not None:
            raise ValueError(
                f"{path}: expected a dataset, got a file of none of these formats: {accepted}; pass its folder, "
                f"{path.parent}"
            )
        if Path(self.dataset).is_absolute():
            raise FileNotFoundError(f"{self.dataset}: no such file or folder; fix --dataset")
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root}: the data root is missing; pass the folder that holds '{self.dataset}' and 'images' as "
                "--data_root, or the dataset's path as --dataset"
            )
        found = _shortened(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name != "images")
        raise FileNotFoundError(
            f"{root / self.dataset}: the dataset's folder is missing; {root} has {found}; fix --dataset or --data_root"
        )

    def _check_options(self, reader: DatasetReader) -> None:
        from .readers import registered_readers

        if self.leak not in (None, "keep", "drop"):
            raise ValueError(f"--leak: expected keep or drop, got {self.leak}; pass one of them")
        for option in sorted({option for other in registered_readers() for option in other.options}):
            name, _, value = option.partition("=")
            given = getattr(self, name)
            is_set = given == value if value else bool(given)
            if is_set and option not in reader.options:
                formats = [other.title or other.name for other in registered_readers() if option in other.options]
                raise ValueError(
                    f"--{option.replace('=', ' ')}: expected one of the formats {', '.join(formats)}, got "
                    f"{self.dataset}, which is {reader.accepts}; omit the option, this format does not need it"
                )


def _sorted(splits: Iterable[str]) -> list[str]:
    return sorted(set(splits), key=lambda split: (_ORDER.index(split) if split in _ORDER else len(_ORDER), split))


def _shortened(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"
