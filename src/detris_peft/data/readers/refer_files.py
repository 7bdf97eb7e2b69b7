"""What the layouts of REFER and gRefCOCO share: references in one file, images and annotations in another."""

import json
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRowError, BadRows, MissingImageError, reject
from ..masks import encode_mask, mask_area, outside_frame, unite_masks
from ..schema import FEATURES
from .refer_fields import field, read_category, read_sentences, repeated_ids, whole
from .safe_pickle import load_plain_pickle

# Below the root. The REFER API itself has COCO's images a little deeper: see `_image_folder`.
IMAGE_FOLDERS = {"refclef": "images/saiapr_tc-12"}
DEFAULT_IMAGE_FOLDER = "images/train2014"
_REFER_API_IMAGE_FOLDER = "images/mscoco/images/train2014"


class ReferFiles:
    """The two files of a dataset, read once; `rows` builds a split from them.

    Args:
        root: the folder that holds the datasets and the images.
        dataset: its folder's name.
        names: of the references' file, in the order of preference; a pickle or JSON.
        image_folder: where the images are, below `root`; by default where the REFER API has them.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file cannot be read.
        pickle.UnpicklingError: the references' pickle asks for more than plain containers.
    """

    def __init__(
        self, root: str | os.PathLike[str], dataset: str, names: Sequence[str], image_folder: str | None = None
    ) -> None:
        self.dataset = dataset
        self.refs_file, self.instances_file = _find_files(Path(root), dataset, names)
        self.references = _read_references(self.refs_file)
        self.image_entries, self.annotations = _read_instances(self.instances_file)
        self.folder = _image_folder(Path(os.path.abspath(root)), dataset, image_folder)
        self._masks: dict[tuple[int, int, int], dict[str, Any]] = {}

    def splits(self) -> list[str]:
        return sorted({str(reference.get("split")) for reference in self.references})

    def image_names(self, of_split: Callable[[str], bool]) -> set[str]:
        """The images' file names, normalized, of all references in the splits that are asked for."""
        wanted = {whole(r.get("image_id")) for r in self.references if of_split(str(r.get("split")))}
        return {normalized(str(self.image_entries[i].get("file_name"))) for i in wanted if i in self.image_entries}

    def rows(
        self,
        split: str,
        bad_rows: BadRows | None,
        find_targets: Callable[[Mapping[str, Any], str], list[int]],
        unique_sentences: bool = True,
    ) -> datasets.Dataset:
        """One split, one row a reference, in the file's order.

        Args:
            split: exactly as in the file.
            bad_rows: collects what cannot be trained on; None stops at the first such row.
            find_targets: gives a reference's annotation ids; the second argument begins the error message.
            unique_sentences: a sentence's id must stand once in the whole file.

        Raises:
            BadRowError, MissingImageError: see `bad_rows`.
            ValueError: no such split.
            FileNotFoundError: the folder of the images is missing.
        """
        if not any(reference.get("split") == split for reference in self.references):
            raise ValueError(f"{self.refs_file}: no split '{split}': there are {listed(self.splits())}")
        repeated = repeated_ids(self.references, unique_sentences)
        rows = []
        for place, reference in enumerate(self.references):
            if reference.get("split") != split:
                continue
            try:
                if place in repeated:
                    message = f"{self.refs_file}: {repeated[place]}: give it an id of its own or remove it"
                    raise BadRowError(message, "duplicate_id")
                rows.append(self._row(reference, find_targets))
            except BadRowError as error:
                reject(error, bad_rows)
        rows = self._with_images(rows, bad_rows)
        return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)

    def _row(
        self, reference: Mapping[str, Any], find_targets: Callable[[Mapping[str, Any], str], list[int]]
    ) -> dict[str, Any]:
        """One row of `FEATURES`; whatever is wrong with it is a BadRowError that names file, id and field."""
        ref_id = field(reference, "ref_id", int, f"{self.refs_file}: a reference")
        where = f"{self.refs_file}: reference {ref_id}"
        ann_ids = find_targets(reference, where)
        image_id = field(reference, "image_id", int, where)
        texts, sent_ids = read_sentences(reference, where)
        annotations = [self._annotation(ann_id, image_id, where) for ann_id in ann_ids]
        image = self.image_entries.get(image_id)
        if image is None:
            raise BadRowError(
                f"{self.instances_file}: no image {image_id}, which {where} needs: the files do not belong together"
            )
        where_image = f"{self.instances_file}: image {image_id}"
        file_name = field(image, "file_name", str, where_image)
        height, width = (field(image, name, int, where_image) for name in ("height", "width"))
        if height < 1 or width < 1:
            raise BadRowError(f"{where_image}: 'height' and 'width' are {height} and {width}: mend them")
        masks = [self._mask(annotation, height, width, ref_id) for annotation in annotations]
        return {
            "image": str(self.folder / file_name),
            "sentences": texts,
            "mask": masks[0] if len(masks) == 1 else unite_masks(masks, height, width),
            "ref_id": ref_id,
            "ann_id": ann_ids[0] if ann_ids else -1,
            "ann_ids": ann_ids,
            "no_target": not ann_ids,
            "image_id": image_id,
            "sent_ids": sent_ids,
            "category_id": read_category(reference, annotations, where),
            "split": reference["split"],
            "dataset": self.dataset,
            "file_name": file_name,
        }

    def _annotation(self, ann_id: int, image_id: int, where: str) -> dict:
        annotation = self.annotations.get(ann_id)
        if annotation is None:
            raise BadRowError(
                f"{self.instances_file}: no annotation {ann_id}, which {where} needs: the files do not belong together"
            )
        drawn_on = annotation.get("image_id", image_id)
        if drawn_on != image_id:
            raise BadRowError(
                f"{where}: 'image_id' is {image_id}, but annotation {ann_id} is of image {drawn_on}: mend one"
            )
        return annotation

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
                mend = f"remove reference {ref_id} or mend 'segmentation'"
                if outside_frame(segmentation, height, width):
                    raise BadRowError(
                        f"{where}: the mask lies wholly beside the image of {width}x{height} pixels: {mend}",
                        "mask_out_of_frame",
                    )
                raise BadRowError(f"{where}: the mask is empty: {mend}", "mask_empty")
            self._masks[key] = mask
        return self._masks[key]

    def _with_images(self, rows: list[dict[str, Any]], bad_rows: BadRows | None) -> list[dict[str, Any]]:
        """The rows whose image is there."""
        if not rows:
            return rows
        elsewhere = "or pass image_folder= if they are elsewhere below the root"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: the images' folder is missing: put them there, {elsewhere}")
        wanted = {row["file_name"] for row in rows}
        missing = sorted(wanted - _present(self.folder, wanted))
        if missing and bad_rows is None:
            raise MissingImageError(
                f"{self.folder / missing[0]}: {len(missing)} of {len(wanted)} images are missing, this one first: "
                f"put them there, {elsewhere}"
            )
        gone = set(missing)
        for row in rows:
            if row["file_name"] in gone:
                message = (
                    f"{self.refs_file}: reference {row['ref_id']}: {row['image']} is missing: put the image there"
                )
                reject(MissingImageError(message), bad_rows)
        return [row for row in rows if row["file_name"] not in gone]


def normalized(file_name: str) -> str:
    """The same for every way to write a file's name."""
    return posixpath.normpath(file_name)


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _find_files(root: Path, dataset: str, names: Sequence[str]) -> tuple[Path, Path]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: the data root is missing: pass the folder that holds '{dataset}' and 'images'"
        )
    folder = root / dataset
    pattern = names[0].split("(")[0] + "(*)*"
    if not folder.is_dir():
        found = sorted({file.parent.name for file in root.glob(f"*/{pattern}")})
        raise FileNotFoundError(f"{folder}: the dataset's folder is missing: in {root} there are {listed(found)}")
    refs_file = next((folder / name for name in names if (folder / name).is_file()), None)
    if refs_file is None:
        found = sorted(file.name for file in folder.glob(pattern))
        raise FileNotFoundError(f"{folder / names[0]}: the file is missing: beside it there are {listed(found)}")
    instances_file = folder / "instances.json"
    if not instances_file.is_file():
        raise FileNotFoundError(f"{instances_file}: the file is missing: put the dataset's annotations there")
    return refs_file, instances_file


def _image_folder(root: Path, dataset: str, image_folder: str | None) -> Path:
    if image_folder is not None:  # "" too: the images lie in the root itself
        return root / image_folder
    folder, deeper = root / IMAGE_FOLDERS.get(dataset, DEFAULT_IMAGE_FOLDER), root / _REFER_API_IMAGE_FOLDER
    return deeper if deeper.is_dir() and not folder.is_dir() and dataset not in IMAGE_FOLDERS else folder


def _read_references(file: Path) -> list[dict]:
    references = _read_json(file) if file.suffix == ".json" else load_plain_pickle(file)
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        raise ValueError(f"{file}: must hold a list of references (dicts): it is another file, fetch it again")
    return references


def _read_instances(file: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Images and annotations by their ids."""
    content = _read_json(file)
    try:
        images = {image["id"]: image for image in content["images"]}
        annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: must hold 'images' and 'annotations', each with an 'id' ({error!r})") from error
    return images, annotations


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable as JSON ({error}): fetch the file again") from error


def _present(folder: Path, file_names: Iterable[str]) -> set[str]:
    """The files that are there. One listing per folder: on a network drive 20,000 questions would take minutes."""
    contents: dict[str, set[str]] = {}
    present = set()
    for file_name in file_names:
        parent, name = os.path.split(file_name)
        if parent not in contents:
            place = folder / parent
            contents[parent] = set(os.listdir(place)) if place.is_dir() else set()
        if name in contents[parent]:
            present.add(file_name)
    return present
