"""Exports of LabelMe, CVAT and VGG Image Annotator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Prepare, steps, write
from tests.helpers.reference import FIXTURES

LABELME, CVAT, VIA = "set/0001.json", "set/annotations.xml", "set/via_project_garden.json"
CONVERT = "data convert --output out --splits train --dataset set"
DESCRIBE = "data describe --output out --dataset set"


def _copy(name: str) -> Prepare:
    """Return a function that copies a valid dataset to set/."""

    def prepare(root: Path) -> None:
        shutil.copytree(FIXTURES / "labels" / name, root / "set")

    return prepare


def _edited(file: str, old: str, new: str, encoding: str = "utf-8") -> Prepare:
    """Return a function that replaces a text in a file; JSON is in one line."""

    def prepare(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        if file.endswith(".json"):
            text = json.dumps(json.loads(text), ensure_ascii=False)
        assert old in text
        (root / file).write_text(text.replace(old, new), encoding=encoding)

    return prepare


def _removed(name: str) -> Prepare:
    return lambda root: (root / name).unlink()


def _labelme(case: str, prepare: Prepare, *expected: str, command: str = CONVERT) -> Case:
    return Case(f"LabelMe: {case}", command, expected, steps(_copy("labelme"), prepare))


def _shape(case: str, fields: dict[str, Any], *expected: str) -> Case:
    def prepare(root: Path) -> None:
        content = json.loads((root / LABELME).read_text(encoding="utf-8"))
        content["shapes"][0] |= fields
        (root / LABELME).write_text(json.dumps(content))

    return _labelme(case, prepare, f"{LABELME}: shapes[0]: ", *expected)


def _cvat(case: str, prepare: Prepare, *expected: str, command: str = CONVERT) -> Case:
    return Case(f"CVAT: {case}", command, expected, steps(_copy("cvat"), prepare))


def _via(case: str, prepare: Prepare, *expected: str, command: str = CONVERT) -> Case:
    return Case(f"VIA: {case}", command, expected, steps(_copy("via"), prepare))


CASES = [
    _labelme("JSON is cut", write(LABELME, '{"version": "5", "flags": {}, "shapes": ['), LABELME, "expected JSON"),
    _labelme(
        "encoding", _edited(LABELME, "left", "lëft", "cp1252"), LABELME, "got another encoding", "save it as UTF-8"
    ),
    _labelme("image is missing", _removed("set/0001.jpg"), LABELME, "set/0001.jpg is missing", "add the image"),
    _labelme("other size", _edited(LABELME, '"imageWidth": 80', '"imageWidth": 90'), "expected an image of 90x60"),
    _labelme(
        "no descriptions",
        steps(write(LABELME, {"shapes": [], "imagePath": "a"}), _edited("set/0002.json", '"the pot"', '""')),
        "got 2 objects without any",
        "write sentences in the description",
        "detris data describe",
    ),
    _labelme(
        "file of another tool", _edited(LABELME, '"shapes"', '"objects"'), LABELME, "a list of 'shapes'", "move other"
    ),
    _labelme(
        "files of two tools",
        lambda root: shutil.copy(FIXTURES / "labels/cvat/annotations.xml", root / "set"),
        "expected files of one format, got those of CVAT and LabelMe",
        "--format cvat or --format labelme",
    ),
    _labelme(
        "split does not exist", lambda root: None, "no split 'val'", "data split", command=f"{CONVERT} --splits val"
    ),
    _shape("polygon outside", {"points": [[90, 1], [95, 1], [95, 9]]}, "'points'", "entirely outside the image"),
    _shape("points that are text", {"points": "10,10"}, "'points': expected a list of points [x, y], got '10,10'"),
    _shape("unknown shape", {"shape_type": "star"}, "as 'shape_type', got 'star'", "draw a polygon"),
    _shape("description that is a number", {"description": 7}, "'description': expected a sentence", "got 7"),
    _cvat(
        "video",
        _edited(CVAT, "</annotations>", '<track id="0" label="rose"></track></annotations>'),
        CVAT,
        "expected 'CVAT for images 1.1', got 'CVAT for video 1.1'",
        "export the task as",
    ),
    _cvat("DTD", _edited(CVAT, "<annotations>", "<!DOCTYPE a><annotations>"), CVAT, "without a DTD", "remove it"),
    _cvat("XML is cut", _edited(CVAT, "</annotations>", ""), CVAT, "expected XML, got an error", "export it again"),
    _cvat("encoding", _edited(CVAT, "left", "lëft", "cp1252"), CVAT, "not well-formed", "save it as UTF-8"),
    _cvat("image is missing", _removed("set/images/0001.jpg"), CVAT, "0001.jpg is missing", "add the image"),
    _cvat("mask that does not fill its box", _edited(CVAT, "2, 3, 4", "9, 3, 4"), "mask 3: 'rle'", "of its box, got"),
    _cvat(
        "attribute that is not text",
        _edited(CVAT, "the left rose\nthe red flower", "true"),
        "polygon 0: 'description': expected a sentence",
        "got True",
    ),
    _cvat(
        "unknown label",
        _edited(CVAT, 'label="rose"', 'label="tulip"'),
        "polygon 0: expected one of the labels in <meta>, pot, rose, got 'tulip'",
        command=DESCRIBE,
    ),
    _via("image is missing", _removed("set/0002.jpg"), VIA, "image '0002.jpg786'", "0002.jpg is missing"),
    _via("radius", _edited(VIA, '"rx": 12', '"rx": "x"'), "region 2: expected a number as 'rx', got 'x'", "fix it"),
    _via(
        "unknown option",
        _edited(VIA, '"kind": "pot"', '"kind": "tulip"'),
        "region 0: 'kind': expected one of the options rose, sun, pot, got 'tulip'",
        command=DESCRIBE,
    ),
    _via(
        "CSV with a comma in a name",
        steps(
            _removed(VIA),
            write(
                "set/via.csv",
                "filename,file_size,region_shape_attributes,region_attributes\na,b.jpg,5,{},{}\n",
            ),
        ),
        "set/via.csv: line 2: expected as many fields as the header has",
        "export the annotations as JSON",
    ),
]
