"""Fuzz targets for the files of labeling tools and of public sets: one file of a small valid dataset is replaced."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from detris_peft.data import BadRows, DataSource
from detris_peft.data.errors import NoSentencesError
from detris_peft.data.readers import find_reader
from detris_peft.data.readers.labels.reader import LabelReader
from tests.fuzz import inputs
from tests.fuzz.target import HEIGHT, WIDTH, Target, decode_rows, image_file, written
from tests.helpers.reference import FIXTURES

_LABELS = FIXTURES / "labels"


def _read(name: str, file: str, prepare: Callable[[Path], None], data: bytes) -> None:
    """Read a dataset in which `data` is the content of a file, as sentences and as classes; detect it as well."""
    folder = Path(name)
    if not folder.exists():
        prepare(folder)
    written(f"{name}/{file}", data)
    reader = find_reader(DataSource(name, format=name.split("-")[0]))
    assert isinstance(reader, LabelReader)
    source = DataSource(name)
    reader.detect(source)
    # The fingerprint of a dataset takes ten times longer than the rest.
    with patch("datasets.arrow_dataset.generate_fingerprint", lambda dataset: "0"):
        for load, split in itertools.product((reader.load, reader.load_objects), reader.splits(source)):
            bad_rows = BadRows()
            with suppress(NoSentencesError):
                decode_rows(load(source, split, bad_rows))
            assert all("\n" not in str(error) for error in bad_rows)
    list(reader.annotation_files(source))


def _copy(fixture: str, folder: Path) -> None:
    shutil.copytree(_LABELS / fixture, folder)


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files; those without content are images."""
    for name, content in files.items():
        if content:
            written(f"{folder}/{name}", content)
        else:
            image_file(f"{folder}/{name}")


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _fixture_file(fixture: str, file: str) -> list[bytes]:
    """Return the content of a file of a fixture, JSON in one line."""
    data = (_LABELS / fixture / file).read_bytes()
    return [_json(json.loads(data)) if file.endswith(".json") else data]


def _label_studio_folder(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (80, 60)).save(folder / "a.png")


def _label_studio() -> list[bytes]:
    size = {"original_width": 80, "original_height": 60, "image_rotation": 0}
    brush = base64.b64decode(json.loads((_LABELS / "label_studio" / "brush.json").read_text())["disc"])
    values = {
        "polygon": {"points": [[10, 10], [50, 10], [50, 60]]},
        "rectangle": {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 30},
        "ellipse": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0},
        "brush": {"format": "rle", "rle": [*brush]},
    }
    results: list[dict[str, Any]] = []
    for kind, value in values.items():
        label = {"type": f"{kind}labels", "value": {**value, f"{kind}labels": ["rose"]}}
        results.append({"id": kind, "from_name": "label", "to_name": "image", **size, **label})
        results.append({"id": kind, "type": "textarea", "from_name": "caption", "value": {"text": ["the left rose"]}})
    return [_json([{"id": 1, "data": {"image": "/data/upload/1/1a2b-a.png"}, "annotations": [{"result": results}]}])]


_VOC = """<annotation><folder>VOC</folder><filename>a.png</filename><size><width>30</width><height>20</height></size>
<object><name>rose</name><description>the left rose</description><bndbox><xmin>2</xmin></bndbox></object>
<object><name>pot</name><polygon><x1>2</x1><y1>2</y1><x2>12</x2><y2>2</y2><x3>12</x3><y3>12</y3></polygon></object>
</annotation>"""


def _voc_mask() -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:9, 3:12] = 1
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 128, 0, 0])
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _voc(folder: Path) -> None:
    files = {"JPEGImages/a.png": b"", "SegmentationObject/a.png": _voc_mask(), "Annotations/a.xml": _VOC.encode()}
    _write(files, folder)


_YAML = b"path: .\ntrain: images/train\nval: [images/train]\nnames: {0: rose, 1: pot}\n"
_LINES = b"0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.6 0.2 0.9 0.2 0.9 0.5 0.6 0.5\n"
_YOLO = {"data.yaml": _YAML, "images/train/a.png": b"", "labels/train/a.txt": _LINES}


def _targets() -> dict[str, Target]:
    """Return the targets; the part of a name before "-" is that of the reader."""
    found = {}
    for name, fixture, file in (
        ("cvat", "cvat", "annotations.xml"),
        ("labelme", "labelme", "0001.json"),
        ("phrasecut", "phrasecut", "refer_train.json"),
        ("phrasecut-sizes", "phrasecut", "image_data_split.json"),
        ("reasonseg", "reasonseg", "train/1001.json"),
        ("ref_youtube_vos", "ref_youtube_vos", "meta_expressions/train/meta_expressions.json"),
        ("ref_youtube_vos-classes", "ref_youtube_vos", "train/meta.json"),
        ("ref_youtube_vos-masks", "ref_youtube_vos", "train/Annotations/003234408d/00000.png"),
        ("via", "via", "via_project_garden.json"),
    ):
        mutate = inputs.mutated_json if file.endswith(".json") else inputs.mutated
        read = partial(_read, name, file, partial(_copy, fixture))
        found[name] = Target(read, partial(_fixture_file, fixture, file), mutate)
    for name, file, prepare, seeds, mutate in (
        ("label_studio", "p.json", _label_studio_folder, _label_studio, inputs.mutated_json),
        ("pascal_voc", "Annotations/a.xml", _voc, lambda: [_VOC.encode()], inputs.mutated),
        ("pascal_voc-masks", "SegmentationObject/a.png", _voc, lambda: [_voc_mask()], inputs.mutated),
        ("yolo", "labels/train/a.txt", partial(_write, _YOLO), lambda: [_LINES], inputs.mutated),
        ("yolo-config", "data.yaml", partial(_write, _YOLO), lambda: [_YAML], inputs.mutated),
    ):
        found[name] = Target(partial(_read, name, file, prepare), seeds, mutate)
    return found


LABEL_TARGETS = _targets()
