"""Writes the datasets of `cases_datasets.py`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from detris_peft.data import FEATURES, encode_mask
from tests.bad_inputs.case import Prepare, write

LINES = "folder/train/metadata.jsonl"
OUTLINE = [8, 8, 30, 8, 30, 30, 8, 30]
GOOD = {"file_name": "0.png", "mask": OUTLINE, "sentences": ["the square"]}


def lines(*items: Any) -> Prepare:
    """Return a function that writes the training lines: text, or objects as JSON."""
    return write(LINES, "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))


def row(**changes: Any) -> Prepare:
    """Return a function that writes one training line with changed fields; None removes a field."""
    return lines({name: value for name, value in {**GOOD, **changes}.items() if value is not None})


def reference(field: str, value: Any, index: int = 0) -> Prepare:
    """Return a function that changes a field of one reference of RefShapes."""

    def prepare(root: Path) -> None:
        file = root / "data/refshapes/refs(unc).p"
        references = pickle.loads(file.read_bytes())
        references[index][field] = value
        file.write_bytes(pickle.dumps(references, 2))

    return prepare


def edit_instances(change: Callable[[dict], object]) -> Prepare:
    """Return a function that changes the images and annotations of RefShapes."""

    def prepare(root: Path) -> None:
        file = root / "data/refshapes/instances.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return prepare


def coco(**changes: Any) -> Prepare:
    """Return a function that writes coco.json with one image and one annotation with changed fields."""
    image = {"id": 1, "file_name": "folder/train/0.png", **changes.pop("image", {})}
    annotation = {"id": 7, "image_id": 1, "segmentation": [OUTLINE], "sentences": ["the square"], **changes}
    return write("coco.json", {"images": [image], "annotations": [annotation]})


def parquet(**changes: Any) -> Prepare:
    """Return a function that writes set/ with one row of the columns `FEATURES` with changed values."""

    def prepare(root: Path) -> None:
        value = {
            "image": {"path": "0.png", "bytes": (root / "folder/train/0.png").read_bytes()},
            "sentences": ["the square"],
            "mask": encode_mask([OUTLINE], 40, 48),
            "ref_id": 1,
            "ann_id": 1,
            "ann_ids": [1],
            "no_target": False,
            "image_id": 1,
            "sent_ids": [1],
            "category_id": 1,
            "split": "train",
            "dataset": "set",
            "file_name": "0.png",
            **changes,
        }
        features = datasets.Features({**FEATURES, "image": datasets.Image()})
        (root / "set").mkdir()
        # `datasets` would embed the file, or fetch the URL, that `image` names.
        table = pa.Table.from_pylist([value], features.arrow_schema)
        pq.write_table(table, root / "set/train-00000-of-00001.parquet")

    return prepare


def remove(name: str) -> Prepare:
    return lambda root: (root / name).unlink()


def copy(source: str, target: str) -> Prepare:
    return lambda root: (root / target).write_bytes((root / source).read_bytes())


def link(name: str, target: str) -> Prepare:
    return lambda root: (root / name).symlink_to(target)


def double_image(content: dict) -> None:
    content["images"].append({**content["images"][0], "file_name": content["images"][1]["file_name"]})


def double_annotation(content: dict) -> None:
    content["annotations"] += [{**annotation, "segmentation": [OUTLINE]} for annotation in content["annotations"]]
