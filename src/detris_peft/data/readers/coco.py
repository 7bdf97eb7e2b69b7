"""COCO JSON whose annotations carry sentences.

{"images":      [{"id": 1, "file_name": "0001.jpg"}],
 "annotations": [{"id": 7, "image_id": 1, "segmentation": [[...]], "sentences": ["the left rose"]}]}
"""

import glob
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRowError, BadRows, reject
from ..fields import read_id, read_mask, read_sentences, sentence_ids, text_id, upright_size
from ..masks import unite_masks
from ..schema import FEATURES

PLACEHOLDER = "{split}"


def load_coco(
    file: str | os.PathLike[str],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    split: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """COCO JSON with `sentences` on annotations, one row an annotation; the columns are `FEATURES`.

    `sentences` is a list of texts or of `{"sent": text}`, or there is a single `sentence`; annotations with neither
    are other objects and are left out. `segmentation` may be polygons or an RLE, of the image as it stands upright.

    Args:
        file: the JSON; "{split}" in its path stands for the split's name: "flowers/{split}.json".
        image_folder: where the images are; by default beside the file.
        split: one of those that annotations or images name in a field `split`. Of a file without such fields, and
            without "{split}" in its path, all is "train". None takes everything.
        bad_rows: collects bad annotations; None raises the first.

    Returns:
        An in-memory `datasets.Dataset`; images stay files until a row is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the split is unknown, the file is not COCO JSON, or no annotation has a sentence; as
            `BadRowError`, an annotation is bad: file, id and field are named.
    """
    templated = PLACEHOLDER in str(file)
    if templated and split is None:
        raise ValueError(f"{file}: which split? pass split=: there are {_listed(coco_splits(file))}")
    place = Path(str(file).replace(PLACEHOLDER, split or ""))
    if templated and not place.is_file():
        raise ValueError(f"{place}: no split '{split}': there are {_listed(coco_splits(file))}")
    images, annotations = _read(place)
    folder = Path(os.path.abspath(image_folder or place.parent))
    default = split if templated and split else "train"
    spoken = [
        (_split(annotation, images, default), annotation)
        for annotation in annotations
        if annotation.get("sentences") or annotation.get("sentence") is not None
    ]
    if not spoken:
        raise ValueError(f"{place}: no annotation has 'sentences': write them beside 'segmentation'")
    if not templated and split is not None and split not in {name for name, _ in spoken}:
        raise ValueError(
            f"{place}: no split '{split}': there are {_listed({name for name, _ in spoken})}; name a split's file as "
            f"'{PLACEHOLDER}.json', or give images a field 'split'"
        )
    # Several files may give one id to different images.
    base = _base(str(file)) if templated else None
    dataset = base.name if base else place.stem
    rows, seen, sizes = [], set(), {}
    for name, annotation in spoken:
        if not templated and split is not None and name != split:
            continue
        where = f"{place}: annotation {annotation.get('id')}"
        try:
            row = {**_row(annotation, images, folder, name, where, sizes), "dataset": dataset}
            if base:
                row["file_name"] = Path(os.path.relpath(row["image"], base)).as_posix()
                row["image_id"] = text_id(row["file_name"])
            if row["ref_id"] in seen:
                raise BadRowError(f"{where}: another annotation has this 'id' too: give another", "duplicate_id")
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        seen.add(row["ref_id"])
        rows.append(row)
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def coco_splits(file: str | os.PathLike[str]) -> list[str]:
    """The splits of COCO JSON; raises as `load_coco` does for files that cannot be read."""
    text = str(file)
    if PLACEHOLDER in text:
        before, after = map(re.escape, text.split(PLACEHOLDER, 1))
        named = re.compile(f"{before}([^/]+){after}".replace(re.escape(PLACEHOLDER), r"\1"))
        everywhere = glob.escape(text).replace(glob.escape(PLACEHOLDER), "*")
        return sorted(match[1] for match in map(named.fullmatch, glob.glob(everywhere)) if match)
    images, annotations = _read(Path(file))
    return sorted({_split(annotation, images, "train") for annotation in annotations})


def _read(file: Path) -> tuple[dict[Any, dict], list[dict]]:
    """Images by id, and annotations."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file: give a COCO .json file")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error}): write it again") from None
    try:
        images, annotations = content["images"], content["annotations"]
        return {image["id"]: dict(image) for image in images}, [dict(one) for one in annotations]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: is not COCO JSON ({error!r}): it must hold 'images', each with an 'id', and 'annotations'"
        ) from None


def _split(annotation: Mapping[str, Any], images: Mapping[Any, dict], default: str) -> str:
    image = images.get(_hashable(annotation.get("image_id")), {})
    return str(annotation.get("split") or image.get("split") or default)


def _row(
    annotation: Mapping[str, Any],
    images: Mapping[Any, dict],
    folder: Path,
    split: str,
    where: str,
    sizes: dict[Path, tuple[int, int]],
) -> dict[str, Any]:
    image_id = annotation.get("image_id")
    image = images.get(_hashable(image_id))
    if image is None:
        raise BadRowError(f"{where}: 'image_id' {image_id} is not among 'images': add the image or mend the id")
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise BadRowError(f"{where}: its image {image_id} has no 'file_name': it must be text")
    file = folder / file_name
    if file not in sizes:
        sizes[file] = upright_size({"path": str(file)}, f"{where}: image {image_id}")
    height, width = sizes[file]
    said = image.get("height", height), image.get("width", width)
    if said != (height, width):
        turned = " once turned upright as its EXIF tag says" if said == (width, height) else ""
        raise BadRowError(
            f"{where}: image {image_id} is {said[1]}x{said[0]} in the JSON, but {file} is {width}x{height} pixels"
            f"{turned}: annotate the image as it is, or mend the JSON",
            "mask_malformed",
        )
    field = "sentences" if annotation.get("sentences") else "sentence"
    sentences = read_sentences(annotation[field], f"{where}: '{field}'")
    no_target = annotation.get("no_target") or False
    if no_target is not True and no_target is not False:
        raise BadRowError(f"{where}: 'no_target' is {no_target!r}: it must be true or false")
    if annotation.get("id") is None:
        raise BadRowError(f"{where}: 'id' is missing: give each annotation its own")
    ref_id = read_id(annotation["id"], -1, f"{where}: 'id'")
    segmentation = annotation.get("segmentation")
    return {
        "image": str(file),
        "sentences": sentences,
        "mask": unite_masks([], height, width)
        if no_target
        else read_mask(segmentation, height, width, f"{where}: 'segmentation'"),
        "ref_id": ref_id,
        "ann_id": -1 if no_target else ref_id,
        "ann_ids": [] if no_target else [ref_id],
        "no_target": no_target,
        "image_id": read_id(image_id, text_id(file_name), f"{where}: 'image_id'"),
        "sent_ids": sentence_ids(ref_id, len(sentences)),
        "category_id": read_id(annotation.get("category_id"), -1, f"{where}: 'category_id'"),
        "split": split,
        "file_name": file_name,
    }


def _base(file: str) -> Path:
    """The dataset's own folder: flowers for flowers/{split}.json and flowers/{split}/annotations.json."""
    return Path(os.path.abspath(f"{file.split(PLACEHOLDER)[0]}x")).parent


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
