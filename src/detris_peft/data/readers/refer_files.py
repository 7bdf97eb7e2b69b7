"""Files shared by the REFER and gRefCOCO formats: references in one file, images and annotations in another."""

import gc
import os
import pickle
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...defaults import IMAGE_FOLDER
from ...errors import check_path
from ...safe_loading import load_plain_pickle, read_json
from ..errors import BadRows, MissingImageError, join_names, reject
from .paths import find_image_folder, is_inside, note_outside
from .refer_fields import as_int, repeated_ids
from .refer_rows import ReferRows
from .registry import Source, dataset_folder
from .row_cache import BuiltRows, add_images, cached_rows, is_sharing

# Paths below the root. The REFER API stores COCO's images in a deeper folder: see `_image_folder`.
IMAGE_FOLDERS = {"refclef": "images/saiapr_tc-12", "rrsisd": "images/rrsisd/JPEGImages"}
_REFER_API_IMAGE_FOLDER = "images/mscoco/images/train2014"
_MAX_ERRORS = 1_000_000  # of references without a split, each of which is an error of every split


@dataclass(frozen=True)
class ReferenceFormat:
    """A format of references.

    Attributes:
        name: the reader's name.
        files: names of the references file, a pickle or JSON, in order of preference; "{}" is the split provenance.
        find_targets: returns the annotation ids of a reference; its second argument prefixes error messages.
        unique_sentences: whether sentence ids are unique in the file.
    """

    name: str
    files: tuple[str, ...]
    find_targets: Callable[[Mapping[str, Any], str], list[int]]
    unique_sentences: bool


class ReferFiles:
    """The two files of a dataset, read once; `rows` returns a split of them.

    Args:
        root: the folder that holds the datasets and the images.
        dataset: name of the dataset's folder.
        split_by: split provenance.
        kind: the format of the references.
        images: folder of the images, below `root` or as given; by default the folder for this dataset.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file cannot be read.
        pickle.UnpicklingError: the references' pickle requests more than plain containers.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        dataset: str,
        split_by: str,
        kind: ReferenceFormat,
        images: str | None = None,
    ) -> None:
        check_path("root", root)
        self.dataset = dataset
        self.kind = kind
        self.refs_file = _find_refs_file(Path(root), dataset, _file_names(kind, split_by))
        self.instances_file = Path(root) / dataset / "instances.json"
        if not self.instances_file.is_file():
            raise FileNotFoundError(f"{self.instances_file}: the file is missing; add the dataset's annotations")
        options = {"reader": kind.name, "dataset": dataset}
        self._rows = cached_rows([self.refs_file, self.instances_file], options, self._build)
        self.folder = _image_folder(root, dataset, images)

    def splits(self) -> list[str]:
        return self._rows.splits

    def held_out_images(self) -> set[str]:
        """Return the normalized file names of all images in val and test splits."""
        return set(self._rows.details["held_out_images"])

    def rows(self, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        """Return one split, one row per reference, in the file's order.

        Args:
            split: the split's name in the file.
            bad_rows: collects invalid rows; None raises the first.

        Raises:
            BadRowError, MissingImageError: see `bad_rows`.
            ValueError: the split does not exist.
            FileNotFoundError: the image folder is missing.
        """
        if not self.splits():
            raise ValueError(f"{self.refs_file}: expected at least one reference with a 'split', got none; add some")
        if split not in self.splits():
            raise ValueError(f"{self.refs_file}: no split '{split}', expected one of {join_names(self.splits())}")
        rows = self._rows.select(split, bad_rows)
        names = set(rows["file_name"][:])
        # Backslashes separate folders if no file has exactly this name.
        renamed = {name: name.replace("\\", "/") for name in names if "\\" in name}
        renamed = {name: new for name, new in renamed.items() if not (self.folder / name).is_file()}
        return self._with_images(add_images(rows, self.folder, renamed), bad_rows)

    def _build(self) -> BuiltRows:
        """Read the files; see `cached_rows`."""
        with _without_garbage_collection():
            references = _read_references(self.refs_file)
            image_entries, annotations = _read_instances(self.instances_file)
        splits = sorted(_split_names(references))
        indices = _indices_by_split(references, splits, self.refs_file)
        repeated = repeated_ids(references, self.kind.unique_sentences)
        converter = ReferRows(
            self.dataset,
            self.refs_file,
            self.instances_file,
            references,
            image_entries,
            annotations,
            repeated,
            self.kind.find_targets,
        )
        held_out = {as_int(r.get("image_id")) for r in references if _is_held_out(r.get("split"))}
        entries = [entry for i in held_out if i is not None for entry in image_entries.get(i, ())]
        return BuiltRows(
            {split: converter.convert(indices[split]) for split in splits},
            {"held_out_images": sorted({normalized(str(entry.get("file_name"))) for entry in entries})},
        )

    def _with_images(self, rows: datasets.Dataset, bad_rows: BadRows | None) -> datasets.Dataset:
        """Return the rows whose image exists; the others are collected or raised."""
        if not len(rows):
            return rows
        fix = "add them, or pass image_folder= if they are elsewhere below the root"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: the image folder is missing; {fix}")
        file_names = rows["file_name"][:]
        names = set(file_names)
        missing = names - _existing(self.folder, names)
        if missing and bad_rows is None:
            raise MissingImageError(
                f"{self.folder / min(missing)}: {len(missing)} of {len(names)} images are missing, this is the first; "
                f"{fix}"
            )
        if not missing:
            return rows
        for name, ref_id in zip(file_names, rows["ref_id"][:], strict=True):
            if name in missing:
                message = f"{self.refs_file}: reference {ref_id}: {self.folder / name} is missing; add the image"
                reject(MissingImageError(message), bad_rows)
        return rows.select([index for index, name in enumerate(file_names) if name not in missing])


def root_and_name(source: Source) -> tuple[str, str]:
    """Return the folder that holds the dataset and its images, and the dataset's name in it."""
    folder = dataset_folder(source)
    is_name = Path(source.dataset).name not in ("", "..") and not os.path.isabs(source.dataset)
    if is_name and folder == Path(source.data_root, source.dataset):
        return source.data_root, Path(source.dataset).as_posix()
    folder = Path(os.path.abspath(folder))
    return str(folder.parent), folder.name


def reference_splits(
    root: str | os.PathLike[str], dataset: str, split_by: str, kind: ReferenceFormat
) -> Iterable[str]:
    """Return the splits in the references file alone; arguments and errors as for `ReferFiles`."""
    if is_sharing():  # the rows are needed next
        with suppress(OSError, ValueError, pickle.UnpicklingError):  # raised again for each split
            return ReferFiles(root, dataset, split_by, kind).splits()
    return _split_names(_read_references(_find_refs_file(Path(root), dataset, _file_names(kind, split_by))))


def annotation_files(root: str | os.PathLike[str], dataset: str, split_by: str, kind: ReferenceFormat) -> list[Path]:
    """Return the two files of a dataset that exist; arguments as for `ReferFiles`."""
    folder = Path(root) / dataset
    references = next((file for name in _file_names(kind, split_by) if (file := folder / name).is_file()), None)
    instances = folder / "instances.json"
    return [file for file in (references, instances) if file is not None and file.is_file()]


def _image_folder(root: str | os.PathLike[str], dataset: str, given: str | None) -> Path:
    """Return the folder of a dataset's images.

    Raises:
        FileNotFoundError: the given folder does not exist.
    """
    root = Path(os.path.abspath(root))
    if given is not None:  # "" is valid: the images are in the root itself
        return find_image_folder(root, given)
    folder, deeper = root / IMAGE_FOLDERS.get(dataset, IMAGE_FOLDER), root / _REFER_API_IMAGE_FOLDER
    return deeper if deeper.is_dir() and not folder.is_dir() and dataset not in IMAGE_FOLDERS else folder


def _split_names(references: Iterable[Mapping[str, Any]]) -> set[str]:
    return {reference["split"] for reference in references if isinstance(reference.get("split"), str)}


def _indices_by_split(
    references: Sequence[Mapping[str, Any]], splits: Sequence[str], file: Path
) -> dict[str, list[int]]:
    """Return the indices of each split's references; those without a split are in every split, as errors."""
    own: dict[str, list[int]] = defaultdict(list)
    without = []
    for index, reference in enumerate(references):
        split = reference.get("split")
        (own[split] if isinstance(split, str) else without).append(index)
    if len(without) * len(splits) > _MAX_ERRORS:
        raise ValueError(
            f"{file}: expected references with a 'split', got {len(without):,} without one; add it or remove them"
        )
    return {split: sorted(own[split] + without) if without else own[split] for split in splits}


def _is_held_out(split: Any) -> bool:
    return isinstance(split, str) and split.startswith(("val", "test"))


def _file_names(kind: ReferenceFormat, split_by: str) -> list[str]:
    return [name.format(split_by) for name in kind.files]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector, which would visit the growing content of a large file again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def normalized(file_name: str) -> str:
    """Return a file name without redundant parts such as "./" and with slashes only, for comparisons."""
    return posixpath.normpath(file_name.replace("\\", "/"))


def _find_refs_file(root: Path, dataset: str, names: Sequence[str]) -> Path:
    """Return the first of the named files that exists."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: the data root is missing; pass the folder that holds '{dataset}' and 'images'"
        )
    folder = root / dataset
    pattern = names[0].split("(")[0] + "(*)*"
    if not folder.is_dir():
        found = sorted({file.parent.name for file in root.glob(f"*/{pattern}")})
        raise FileNotFoundError(f"{folder}: the dataset's folder is missing; {root} has {join_names(found)}")
    refs_file = next((folder / name for name in names if (folder / name).is_file()), None)
    if refs_file is None:
        found = sorted(file.name for file in folder.glob(pattern))
        raise FileNotFoundError(f"{folder / names[0]}: the file is missing; the folder has {join_names(found)}")
    return refs_file


def _read_references(file: Path) -> list[dict]:
    references = read_json(file) if file.suffix == ".json" else load_plain_pickle(file)
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        raise ValueError(f"{file}: expected a list of references (dicts), got other content; download it again")
    return references


def _read_instances(file: Path) -> tuple[dict[int, list[dict]], dict[int, list[dict]]]:
    """Return images and annotations, keyed by their ids: one of each id, or several that differ."""
    content = read_json(file)
    try:
        return _by_id(content["images"]), _by_id(content["annotations"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected 'images' and 'annotations', each with an 'id', got other content ({error!r}); download "
            "it again"
        ) from error


def _by_id(entries: Iterable[dict]) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for entry in entries:
        same = found.setdefault(entry["id"], [])
        if entry not in same:
            same.append(entry)
    return found


def _existing(folder: Path, file_names: Iterable[str]) -> set[str]:
    """Return the files that exist. Lists each folder once: 20,000 file lookups on a network drive take minutes."""
    contents: dict[str, dict[str, bool]] = {}
    existing = set()
    for file_name in file_names:
        parent, name = os.path.split(file_name)
        path = folder / parent
        if parent not in contents:
            outside = not is_inside(path, folder)
            entries = os.scandir(path) if path.is_dir() else ()
            contents[parent] = {entry.name: outside or entry.is_symlink() for entry in entries}
        if name in contents[parent]:
            existing.add(file_name)
            if contents[parent][name]:
                note_outside(path / name, folder, file_name)
    return existing
