"""Files shared by the REFER and gRefCOCO formats: references in one file, images and annotations in another."""

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ...defaults import IMAGE_FOLDER
from ...errors import check_path
from ...safe_loading import load_plain_pickle, read_json
from ..errors import BadRowError, BadRows, MissingImageError, join_names, reject
from ..masks import encode_mask, mask_area, outside_frame, unite_masks
from ..schema import make_row, to_dataset
from .paths import find_image_folder, is_inside, note_outside
from .refer_fields import as_int, field, read_category, read_sentences, repeated_ids
from .registry import Source, dataset_folder

# Paths below the root. The REFER API stores COCO's images in a deeper folder: see `_image_folder`.
IMAGE_FOLDERS = {"refclef": "images/saiapr_tc-12"}
_REFER_API_IMAGE_FOLDER = "images/mscoco/images/train2014"


class ReferFiles:
    """The two files of a dataset, read once; `rows` builds a split from them.

    Args:
        root: the folder that holds the datasets and the images.
        dataset: name of the dataset's folder.
        names: names of the references file, a pickle or JSON, in order of preference.
        images: folder of the images, below `root` or as given; by default the folder for this dataset.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file cannot be read.
        pickle.UnpicklingError: the references' pickle requests more than plain containers.
    """

    def __init__(
        self, root: str | os.PathLike[str], dataset: str, names: Sequence[str], images: str | None = None
    ) -> None:
        check_path("root", root)
        self.dataset = dataset
        self.refs_file = _find_refs_file(Path(root), dataset, names)
        self.instances_file = Path(root) / dataset / "instances.json"
        if not self.instances_file.is_file():
            raise FileNotFoundError(f"{self.instances_file}: the file is missing; add the dataset's annotations")
        self.references = _read_references(self.refs_file)
        self.image_entries, self.annotations = _read_instances(self.instances_file)
        self.folder = _image_folder(root, dataset, images)
        self._masks: dict[tuple[int, int, int], dict[str, Any]] = {}

    def splits(self) -> list[str]:
        return sorted(_split_names(self.references))

    def image_names(self, select_split: Callable[[str], bool]) -> set[str]:
        """Return the normalized file names of all images in the selected splits."""
        ids = {as_int(r.get("image_id")) for r in self.references if select_split(str(r.get("split")))}
        entries = [entry for i in ids if i is not None for entry in self.image_entries.get(i, ())]
        return {normalized(str(entry.get("file_name"))) for entry in entries}

    def rows(
        self,
        split: str,
        bad_rows: BadRows | None,
        find_targets: Callable[[Mapping[str, Any], str], list[int]],
        unique_sentences: bool = True,
    ) -> datasets.Dataset:
        """Return one split, one row per reference, in the file's order.

        Args:
            split: the split's name in the file.
            bad_rows: collects invalid rows; None raises the first.
            find_targets: returns the annotation ids of a reference; its second argument prefixes error messages.
            unique_sentences: require sentence ids to be unique in the file.

        Raises:
            BadRowError, MissingImageError: see `bad_rows`.
            ValueError: the split does not exist.
            FileNotFoundError: the image folder is missing.
        """
        if not self.splits():
            raise ValueError(f"{self.refs_file}: expected at least one reference with a 'split', got none; add some")
        if split not in self.splits():
            raise ValueError(f"{self.refs_file}: no split '{split}', expected one of {join_names(self.splits())}")
        repeated = repeated_ids(self.references, unique_sentences)
        rows = []
        for index, reference in enumerate(self.references):
            if reference.get("split") != split and isinstance(reference.get("split"), str):
                continue
            try:
                field(reference, "split", str, f"{self.refs_file}: reference {reference.get('ref_id')!r:.60}")
                if index in repeated:
                    message = f"{self.refs_file}: {repeated[index]}; renumber or remove it"
                    raise BadRowError(message, "duplicate_id")
                rows.append(self._row(reference, find_targets))
            except BadRowError as error:
                reject(error, bad_rows)
        return to_dataset(self._with_images(rows, bad_rows))

    def _row(
        self, reference: Mapping[str, Any], find_targets: Callable[[Mapping[str, Any], str], list[int]]
    ) -> dict[str, Any]:
        """Convert a reference into a row; every error is a BadRowError that names file, id and field."""
        ref_id = field(reference, "ref_id", int, f"{self.refs_file}: a reference")
        where = f"{self.refs_file}: reference {ref_id}"
        ann_ids = find_targets(reference, where)
        image_id = field(reference, "image_id", int, where)
        sentences, sent_ids = read_sentences(reference, where)
        annotations = [self._annotation(ann_id, image_id, where) for ann_id in ann_ids]
        image = self._entry("image", self.image_entries, image_id, where)
        where_image = f"{self.instances_file}: image {image_id}"
        file_name = field(image, "file_name", str, where_image)
        if "\\" in file_name and not (self.folder / file_name).is_file():
            file_name = file_name.replace("\\", "/")
        height, width = (field(image, name, int, where_image) for name in ("height", "width"))
        if height < 1 or width < 1:
            raise BadRowError(
                f"{where_image}: expected positive 'height' and 'width', got {height}, {width}; fix them"
            )
        masks = [self._mask(annotation, height, width, ref_id) for annotation in annotations]
        return make_row(
            image=str(self.folder / file_name),
            sentences=sentences,
            mask=masks[0] if len(masks) == 1 else unite_masks(masks, height, width),
            ref_id=ref_id,
            ann_ids=ann_ids,
            image_id=image_id,
            sent_ids=sent_ids,
            category_id=read_category(reference, annotations, where),
            split=reference["split"],
            dataset=self.dataset,
            file_name=file_name,
        )

    def _annotation(self, ann_id: int, image_id: int, where: str) -> dict:
        annotation = self._entry("annotation", self.annotations, ann_id, where)
        annotated = annotation.get("image_id", image_id)
        if annotated != image_id:
            raise BadRowError(
                f"{where}: expected annotations of image {image_id}, got annotation {ann_id} of image {annotated}; "
                "fix 'image_id' or 'ann_id'"
            )
        return annotation

    def _entry(self, kind: str, entries: Mapping[int, list[dict]], number: int, where: str) -> dict:
        """Return the image or annotation with this id."""
        found = entries.get(number, [])
        if not found and str(number) in entries:
            raise BadRowError(
                f"{self.instances_file}: expected integers as ids, got {kind} {str(number)!r} as text; remove the "
                "quotes"
            )
        if not found:
            raise BadRowError(
                f"{self.instances_file}: no {kind} {number}, expected by {where}; the files do not match, download "
                "both again"
            )
        if len(found) > 1:
            name = "file_name" if kind == "image" else "segmentation"
            values = " and ".join(f"{entry.get(name)!r:.60}" for entry in found[:2])
            raise BadRowError(
                f"{self.instances_file}: expected one {kind} with the id {number}, got two that differ ('{name}': "
                f"{values}), required by {where}; renumber one of them",
                "duplicate_id",
            )
        return found[0]

    def _mask(self, annotation: Mapping[str, Any], height: int, width: int, ref_id: int) -> dict[str, Any]:
        ann_id = annotation["id"]
        key = (ann_id, height, width)
        if key not in self._masks:  # in gRefCOCO many references share an annotation
            where = f"{self.instances_file}: annotation {ann_id}"
            segmentation = annotation.get("segmentation")
            try:
                mask = encode_mask(segmentation, height, width)
            except BadRowError as error:
                raise BadRowError(f"{where}: {error}", error.kind) from None
            if not mask_area(mask):
                fix = f"fix 'segmentation' or remove reference {ref_id}"
                if outside_frame(segmentation, height, width):
                    raise BadRowError(
                        f"{where}: the mask is entirely outside the image of {width}x{height} pixels; {fix}",
                        "mask_out_of_frame",
                    )
                raise BadRowError(f"{where}: the mask is empty; {fix}", "mask_empty")
            self._masks[key] = mask
        return self._masks[key]

    def _with_images(self, rows: list[dict[str, Any]], bad_rows: BadRows | None) -> list[dict[str, Any]]:
        """Return the rows whose image exists; the others are collected or raised."""
        if not rows:
            return rows
        fix = "add them, or pass image_folder= if they are elsewhere below the root"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: the image folder is missing; {fix}")
        names = {row["file_name"] for row in rows}
        missing = names - _existing(self.folder, names)
        if missing and bad_rows is None:
            raise MissingImageError(
                f"{self.folder / min(missing)}: {len(missing)} of {len(names)} images are missing, this is the first; "
                f"{fix}"
            )
        for row in rows:
            if row["file_name"] in missing:
                message = f"{self.refs_file}: reference {row['ref_id']}: {row['image']} is missing; add the image"
                reject(MissingImageError(message), bad_rows)
        return [row for row in rows if row["file_name"] not in missing]


def root_and_name(source: Source) -> tuple[str, str]:
    """Return the folder that holds the dataset and its images, and the dataset's name in it."""
    folder = dataset_folder(source)
    is_name = Path(source.dataset).name not in ("", "..") and not os.path.isabs(source.dataset)
    if is_name and folder == Path(source.data_root, source.dataset):
        return source.data_root, Path(source.dataset).as_posix()
    folder = Path(os.path.abspath(folder))
    return str(folder.parent), folder.name


def reference_splits(root: str | os.PathLike[str], dataset: str, names: Sequence[str]) -> set[str]:
    """Return the splits in the references file alone; arguments and errors as for `ReferFiles`."""
    references = _read_references(_find_refs_file(Path(root), dataset, names))
    return _split_names(references)


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


def normalized(file_name: str) -> str:
    """Return a file name without redundant parts such as "./", for comparisons."""
    return posixpath.normpath(file_name)


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
