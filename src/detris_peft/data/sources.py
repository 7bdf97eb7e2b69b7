"""Which dataset is meant, and which reader it takes: the same options on every command."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from .errors import BadRows
from .readers.coco import PLACEHOLDER, coco_splits, load_coco
from .readers.column_mapping import ColumnMapping
from .readers.folder import METADATA, folder_splits, load_folder
from .readers.grefcoco import load_grefer
from .readers.hub import load_mapped, mapped_splits
from .readers.mixed import MIXED_SETS, load_mixed
from .readers.refer import SHARED_BY_DESIGN, load_refer
from .readers.refer_files import DEFAULT_IMAGE_FOLDER
from .readers.safe_pickle import load_plain_pickle

_ACCEPTED = (
    "a folder with refs(*).p or grefs(*).json, and instances.json, one with metadata.jsonl, one that "
    "`datasets.load_dataset` reads, a COCO .json file, or user/name on the Hub"
)
_MAPPED = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tar", ".zip")
_ORDER = ("train", "validation", "val", "test", "testA", "testB")


@dataclass
class DataSource:
    """A dataset by name or place; the fields are options of the command line."""

    dataset: str = field(
        default="refcoco",
        metadata={
            "help": "a folder in data_root (refcoco, refcoco+, refcocog, refclef, grefcoco, refshapes), mixed, any "
            "folder with metadata.jsonl, a COCO .json file ({split} in its name stands for the split), or user/name "
            "on the Hub"
        },
    )
    data_root: str = field(default="data", metadata={"help": "folder that holds the datasets and images/"})
    split_by: str = field(default="unc", metadata={"help": "who made the splits: unc, umd or google"})
    image_folder: str | None = field(
        default=None,
        metadata={
            "help": f"where the images are: below data_root, by default {DEFAULT_IMAGE_FOLDER}; by default beside a "
            "COCO file"
        },
    )
    leak: str | None = field(
        default=None,
        metadata={
            "help": "training images that stand in a val or test split: keep trains on them, drop (mixed only, and "
            "its default) leaves them out; otherwise training stops at them"
        },
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "which columns of a Hub or parquet dataset are meant: a shipped mapping's name, a YAML file, or "
            "image=img,sentences=caption,mask=..."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Hub only: the dataset's configuration, where it has several"}
    )
    streaming: bool = field(default=False, metadata={"help": "Hub or parquet only: read rows as they are needed"})

    def load(self, split: str, bad_rows: BadRows | None = None) -> datasets.Dataset | datasets.IterableDataset:
        """One split, with the columns `FEATURES`; an `IterableDataset` where `streaming` is set.

        Args:
            split: "train", "val", "testA", ...: as the dataset names it.
            bad_rows: collects what cannot be trained on; None stops at the first such row.

        Raises:
            FileNotFoundError, ValueError: there is no such dataset or split, or a row is bad; the message says
                what was found and what would be accepted.
        """
        layout, place = self._find()
        images = self.image_folder
        if layout == "mixed":
            return load_mixed(place, split, leak=self.leak or "drop", image_folder=images, bad_rows=bad_rows)
        if layout == "refer":
            root, name = self._root(place)
            return load_refer(root, name, self.split_by, split, image_folder=images, bad_rows=bad_rows)
        if layout == "grefer":
            root, name = self._root(place)
            return load_grefer(
                root, split, dataset=name, split_by=self.split_by, image_folder=images, bad_rows=bad_rows
            )
        if layout == "folder":
            return load_folder(place, split, bad_rows=bad_rows)
        if layout == "coco":
            beside = None if images is None else Path(self.data_root, images)
            return load_coco(place, image_folder=beside, split=split, bad_rows=bad_rows)
        files = (
            place if Path(place).is_dir() and images is None else Path(self.data_root, images or DEFAULT_IMAGE_FOLDER)
        )
        return load_mapped(
            place,
            split,
            self._mapping(),
            name=self.dataset_config,
            image_folder=files,
            streaming=self.streaming,
            bad_rows=bad_rows,
        )

    def may_leak(self) -> str | None:
        """Why images of one name may stand in two splits of this dataset; None if they may not."""
        if self.leak == "keep":
            return "leak=keep"
        if self._layout()[0] == "mapped":
            return "equal names need not be equal images there: `detris data check` compares the images"
        return SHARED_BY_DESIGN.get((self.dataset, self.split_by))

    def splits(self) -> list[str]:
        """The splits that there are: train, val and test first, others in alphabetical order.

        Raises:
            FileNotFoundError, ValueError: there is no such dataset, or its files cannot be read.
        """
        layout, place = self._find()
        if layout == "mixed":
            places = ((Path(place, name), (f"refs({split_by}).p",)) for name, split_by in MIXED_SETS)
            return _sorted(split for folder, names in places for split in _reference_splits(folder, names))
        if layout == "refer":
            return _sorted(_reference_splits(Path(place), (f"refs({self.split_by}).p",)))
        if layout == "grefer":
            names = (f"grefs({self.split_by}).json", f"grefs({self.split_by}).p")
            return _sorted(_reference_splits(Path(place), names))
        if layout == "folder":
            return _sorted(folder_splits(place))
        if layout == "coco":
            return _sorted(coco_splits(place))
        return _sorted(mapped_splits(place, self._mapping(), name=self.dataset_config))

    def _root(self, place: str) -> tuple[str, str]:
        """The folder that holds dataset and images, and the dataset's name in it."""
        if Path(place) == Path(self.data_root, self.dataset):
            return self.data_root, self.dataset
        return str(Path(place).parent), Path(place).name

    def _mapping(self) -> ColumnMapping | None:
        return ColumnMapping.parse(self.columns) if self.columns else None

    def _find(self) -> tuple[str, str]:
        """The layout's name and where it is: mixed, refer, grefer, folder, coco or mapped."""
        layout, place = self._layout()
        if self.leak not in (None, "keep", "drop") or (self.leak == "drop" and layout != "mixed"):
            raise ValueError(
                f"--leak {self.leak}: keep is known, and drop for --dataset mixed; this is {self.dataset}"
            )
        for option in ("columns", "streaming", "dataset_config"):
            if getattr(self, option) and layout != "mapped":
                raise ValueError(
                    f"--{option} is for parquet and Hub datasets, {self.dataset} is none: leave it out, its columns "
                    "are known and its images are read only when needed"
                )
        return layout, place

    def _layout(self) -> tuple[str, str]:
        root = Path(self.data_root)
        if self.dataset == "mixed":
            return "mixed", self.data_root
        places = (root / self.dataset, Path(self.dataset))
        if self.dataset.endswith(".json"):
            place = next((str(place) for place in places if place.is_file()), None)
            if PLACEHOLDER in self.dataset:
                place = next((str(place) for place in places if coco_splits(place)), None)
            if place is None:
                raise FileNotFoundError(f"{self.dataset}: no such file, nor below {root}: give a COCO .json file")
            return "coco", place
        place = next((place for place in places if place.exists()), None)
        if place is None:
            return "mapped", self._hub_name()
        if not place.is_dir():
            raise ValueError(f"{place}: is a file: accepted are {_ACCEPTED}")
        if any(place.glob("grefs(*).*")):
            return "grefer", str(place)
        if any(place.glob("refs(*).p")) or (place / "instances.json").is_file():
            return "refer", str(place)
        if (place / METADATA).is_file() or any(place.glob(f"*/{METADATA}")):
            return "folder", str(place)
        if any(file.suffix in _MAPPED for file in place.rglob("*")):
            return "mapped", str(place)
        names = (entry.name for entry in place.iterdir())
        raise FileNotFoundError(f"{place}: no dataset there, but {_listed(names)}: accepted are {_ACCEPTED}")

    def _hub_name(self) -> str:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset):
            return self.dataset
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root}: the data root is missing: pass the folder that holds '{self.dataset}' and 'images'"
            )
        found = [entry.name for entry in root.iterdir() if entry.is_dir() and entry.name != "images"]
        raise FileNotFoundError(
            f"{root / self.dataset}: the dataset's folder is missing: in {root} there are {_listed(found)}"
        )


def _reference_splits(folder: Path, names: tuple[str, ...]) -> set[str]:
    """The splits in the first of these files that is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the dataset's folder is missing")
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        found = [other.name for other in folder.glob(names[0].split("(")[0] + "(*")]
        raise FileNotFoundError(f"{folder / names[0]}: the file is missing: beside it there are {_listed(found)}")
    try:
        references = load_plain_pickle(file) if file.suffix == ".p" else json.loads(file.read_bytes())
        return {str(reference.get("split")) for reference in references}
    except (AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: holds no list of references ({error}): fetch it again") from None


def _sorted(splits: Iterable[str]) -> list[str]:
    return sorted(set(splits), key=lambda split: (_ORDER.index(split) if split in _ORDER else len(_ORDER), split))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
