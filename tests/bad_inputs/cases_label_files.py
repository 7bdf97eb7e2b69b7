"""Exports of Label Studio, YOLO labels, Pascal VOC folders and tables that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Prepare, steps, write

CHECK = "data convert --output out --dataset"
POINTS = [[10, 10], [60, 10], [60, 60]]
HEADER = "img,caption,polygon\n"
COLUMNS = "--columns image=img,sentences=caption,mask=polygon"


def _photo(name: str) -> Prepare:
    """Return a function that copies photo.png."""
    return lambda root: write(name, Path(root, "photo.png").read_bytes())(root)


def _task(*results: Any, image: str = "/data/upload/1/0a1b2c3d-photo.png") -> dict[str, Any]:
    return {"id": 3, "data": {"image": image}, "annotations": [{"result": list(results)}]}


def _region(**value: Any) -> dict[str, Any]:
    return {"id": "r", "type": "polygonlabels", "value": {"points": POINTS, "polygonlabels": ["rose"], **value}}


def _text(sentence: Any) -> dict[str, Any]:
    return {"id": "r", "type": "textarea", "from_name": "caption", "value": {"text": sentence}}


def _label_studio(case: str, content: Any, *expected: str) -> Case:
    """Return a case in which an export next to photo.png is converted."""
    return Case(
        f"Label Studio: {case}", f"{CHECK} labels.json", ("labels.json", *expected), write("labels.json", content)
    )


def _yolo(case: str, labels: str | bytes, *expected: str, config: str = "names: [rose]\ntrain: images\n") -> Case:
    """Return a case in which yolo/ is described."""
    prepare = steps(
        write("yolo/data.yaml", config), write("yolo/labels/photo.txt", labels), _photo("yolo/images/photo.png")
    )
    return Case(f"YOLO: {case}", "data describe --output out --dataset yolo", expected, prepare)


def _voc(case: str, objects: str, *expected: str, prepare: Prepare | None = None) -> Case:
    """Return a case in which voc/ is converted."""
    written = steps(
        write("voc/Annotations/photo.xml", f"<annotation><filename>photo.png</filename>{objects}</annotation>"),
        _photo("voc/JPEGImages/photo.png"),
    )
    prepared = steps(written, prepare) if prepare else written
    return Case(f"Pascal VOC: {case}", f"{CHECK} voc", ("voc", *expected), prepared)


def _table(case: str, content: str | bytes, *expected: str, options: str = COLUMNS) -> Case:
    """Return a case in which labels.csv next to photo.png is converted."""
    prepare = write("labels.csv", content)
    return Case(f"table: {case}", f"{CHECK} labels.csv {options}".strip(), ("labels.csv", *expected), prepare)


CASES = [
    _label_studio("no texts", [_task(_region())], 'perRegion="true"', "data describe"),
    _label_studio(
        "JSON-MIN",
        [{"image": "a.png", "annotator": 1, "annotation_id": 2, "lead_time": 3}],
        "export the project as JSON",
    ),
    _label_studio("predictions only", [{"id": 1, "data": {}, "predictions": []}], "submit annotations"),
    _label_studio(
        "image is missing", [_task(_region(), _text("it"), image="s3://b/x.png")], "x.png is missing", "add"
    ),
    _label_studio(
        "text is a number", [_task(_region(), _text([3]))], "task 3: region 'r': 'caption'", "of text, got 3"
    ),
    _label_studio(
        "outside", [_task(_region(points=[[110, 5], [120, 5], [120, 9]]), _text("it"))], "outside the image"
    ),
    _label_studio(
        "no image", [_task(_region(), _text("it"), image="audio.wav")], "name or URL of an image", "label one"
    ),
    _yolo("box", "0 0.5 0.5 0.2 0.2\n", "photo.txt: line 1", "got a box, which is not a mask", "label outlines"),
    _yolo("unknown class", "4 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1", "expected a class from 0 to 0", "got 4", "fix"),
    _yolo("pixels", "0 10 10 50 10 50 50\n", "line 1", "expected coordinates from 0 to 1", "divide"),
    _yolo("UTF-16", "0 0.1 0.1 0.5 0.1 0.5 0.5\n".encode("utf-16"), "photo.txt", "save it as UTF-8"),
    _yolo(
        "no names",
        "0 0.1 0.1 0.5 0.1 0.5 0.5\n",
        "a class with a name",
        "add it to 'names'",
        config="names:\ntrain: images\n",
    ),
    _yolo("path", "", "data.yaml: 'train'", "found no photos", "fix", config="names: [a]\ntrain: photos\n"),
    _voc(
        "boxes only", "<object><name>rose</name></object>", "SegmentationObject/photo.png", "not masks", "export masks"
    ),
    _voc(
        "damaged mask",
        "<object><name>rose</name><caption>it</caption></object>",
        "SegmentationObject/photo.png",
        "cannot be decoded",
        prepare=write("voc/SegmentationObject/photo.png", b"PNG"),
    ),
    _voc(
        "DTD",
        "",
        "photo.xml",
        "without a DTD",
        prepare=write("voc/Annotations/photo.xml", "<!DOCTYPE annotation><annotation/>"),
    ),
    _table(
        "no mapping", HEADER + "photo.png,it,\n", '--columns "image=img,sentences=caption,mask=polygon"', options=""
    ),
    _table("unknown column", "img,text\nphoto.png,it\n", "expected the column 'caption'", "got img, text", "fix"),
    _table("another encoding", HEADER.encode() + "photo.png,синяя,\n".encode("cp1251"), "save it as UTF-8"),
    _table("unquoted commas", HEADER + "photo.png,it,[[1,2],[3,4]]\n", "line 2: expected 3 cells", "double quotes"),
    _table("no mask", HEADER + "photo.png,it,\n", "line 2: 'polygon': expected a mask, got nothing", "add it"),
    _table("empty", "", "a different name for each column", "name the columns"),
]
