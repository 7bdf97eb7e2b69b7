"""The layout of the REFER API (Kazemzadeh et al., 2014; Yu et al., 2016): RefCOCO, RefCOCO+, G-Ref, RefCLEF.

<root>/<dataset>/refs(<split_by>).p     who is referred to, in which words
<root>/<dataset>/instances.json         COCO annotations: pictures and segmentations
<root>/images/train2014/*.jpg           the pictures
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from .columns import FEATURES
from .masks import encode_mask, mask_area
from .plain_pickle import load_plain_pickle


def load_refer(
    root: str | os.PathLike[str],
    dataset: str,
    split_by: str,
    split: str,
    *,
    image_folder: str = "images/train2014",
) -> datasets.Dataset:
    """One split of a data set in REFER's layout, one row a reference; the columns are `FEATURES`.

    Args:
        root: the folder that holds the data sets and the pictures.
        dataset: its folder's name, such as "refcoco", "refcoco+", "refcocog", "refclef" or "refshapes".
        split_by: who made the splits: "unc", "umd", "google", ...
        split: "train", "val", "testA", ...: exactly as in the file.
        image_folder: where the pictures are, below `root`.

    Returns:
        An in-memory `datasets.Dataset`; no cache is written. Pictures stay files until a row is read.

    Raises:
        FileNotFoundError: a folder, file or picture is missing.
        ValueError: the split is unknown, or one of its references or annotations is faulty: the first is named.
        pickle.UnpicklingError: the references' pickle asks for more than plain containers.
    """
    refs_file, instances_file = _find_files(Path(root), dataset, split_by)
    references = _of_split(_read_references(refs_file), split, refs_file)
    pictures, annotations = _read_instances(instances_file)
    folder = Path(os.path.abspath(root)) / image_folder
    rows = [_row(reference, pictures, annotations, folder, refs_file, instances_file) for reference in references]
    _require_pictures(folder, [row["file_name"] for row in rows])
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def _find_files(root: Path, dataset: str, split_by: str) -> tuple[Path, Path]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: the data root is missing: pass the folder that holds '{dataset}' and 'images'"
        )
    folder = root / dataset
    if not folder.is_dir():
        found = sorted({file.parent.name for file in root.glob("*/refs(*).p")})
        raise FileNotFoundError(f"{folder}: the data set's folder is missing: in {root} there are {_listed(found)}")
    refs_file = folder / f"refs({split_by}).p"
    if not refs_file.is_file():
        found = sorted(file.name for file in folder.glob("refs(*).p"))
        raise FileNotFoundError(f"{refs_file}: the file is missing: beside it there are {_listed(found)}")
    instances_file = folder / "instances.json"
    if not instances_file.is_file():
        raise FileNotFoundError(f"{instances_file}: the file is missing: put the data set's annotations there")
    return refs_file, instances_file


def _read_references(file: Path) -> list[dict]:
    references = load_plain_pickle(file)
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        raise ValueError(f"{file}: must hold a list of references (dicts): it is another file, fetch it again")
    return references


def _of_split(references: list[dict], split: str, file: Path) -> list[dict]:
    chosen = [reference for reference in references if reference.get("split") == split]
    if not chosen:
        splits = sorted({str(reference.get("split")) for reference in references})
        raise ValueError(f"{file}: no split '{split}': there are {_listed(splits)}")
    return chosen


def _read_instances(file: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Pictures and annotations by their ids."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error}): fetch the file again") from error
    try:
        pictures = {picture["id"]: picture for picture in content["images"]}
        annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: must hold 'images' and 'annotations', each with an 'id' ({error!r})") from error
    return pictures, annotations


def _row(
    reference: Mapping[str, Any],
    pictures: Mapping[int, dict],
    annotations: Mapping[int, dict],
    folder: Path,
    refs_file: Path,
    instances_file: Path,
) -> dict[str, Any]:
    """One row of `FEATURES`; whatever is wrong with it is a ValueError that names file, id and field."""
    ref_id = _field(reference, "ref_id", int, f"{refs_file}: a reference")
    where = f"{refs_file}: reference {ref_id}"
    ann_id = _field(reference, "ann_id", int, where)
    image_id = _field(reference, "image_id", int, where)
    sentences = _field(reference, "sentences", list, where)
    if not sentences:
        raise ValueError(f"{where}: 'sentences' is empty: give it a sentence or remove the reference")
    texts = [_field(sentence, "sent", str, f"{where}: a sentence") for sentence in sentences]
    sent_ids = [_field(sentence, "sent_id", int, f"{where}: a sentence") for sentence in sentences]
    for sent_id, text in zip(sent_ids, texts, strict=True):
        if not text.strip():
            raise ValueError(f"{where}: sentence {sent_id} is blank ({text!r}): write it or remove it")

    annotation = annotations.get(ann_id)
    if annotation is None:
        raise ValueError(
            f"{instances_file}: no annotation {ann_id}, which {where} needs: the files do not belong together"
        )
    picture = pictures.get(image_id)
    if picture is None:
        raise ValueError(
            f"{instances_file}: no image {image_id}, which {where} needs: the files do not belong together"
        )
    drawn_on = annotation.get("image_id", image_id)
    if drawn_on != image_id:
        raise ValueError(
            f"{where}: 'image_id' is {image_id}, but annotation {ann_id} is of image {drawn_on}: mend one"
        )

    where_picture = f"{instances_file}: image {image_id}"
    file_name = _field(picture, "file_name", str, where_picture)
    height, width = (_field(picture, name, int, where_picture) for name in ("height", "width"))
    where_annotation = f"{instances_file}: annotation {ann_id}"
    try:
        mask = encode_mask(annotation.get("segmentation"), height, width)
    except ValueError as error:
        raise ValueError(f"{where_annotation}: {error}") from error
    if not mask_area(mask):
        raise ValueError(f"{where_annotation}: the mask is empty: remove reference {ref_id} or mend 'segmentation'")
    return {
        "image": str(folder / file_name),
        "sentences": texts,
        "mask": mask,
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "sent_ids": sent_ids,
        "category_id": _field(reference, "category_id", int, where),
        "split": reference["split"],
        "file_name": file_name,
    }


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"is {value!r}"
        raise ValueError(f"{where}: '{name}' {found}: it must be of type {kind.__name__}, as in REFER's layout")
    return value


def _require_pictures(folder: Path, file_names: Iterable[str]) -> None:
    """Every picture is there. One listing per folder: on a network drive 20,000 questions would take minutes."""
    wanted = sorted(set(file_names))
    present: dict[str, set[str]] = {}
    missing = []
    for file_name in wanted:
        parent, name = os.path.split(file_name)
        if parent not in present:
            place = folder / parent
            present[parent] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in present[parent]:
            missing.append(file_name)
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}: {len(missing)} of {len(wanted)} pictures are missing, this one first: put them "
            "there, or pass image_folder= if they are elsewhere below the root"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
