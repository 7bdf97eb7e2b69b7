"""Public referring sets in their authors' formats: ReasonSeg, Ref-YouTube-VOS and PhraseCut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Prepare, steps, write
from tests.helpers.reference import FIXTURES

VIDEO = "003234408d"
TARGET = {"label": "target", "points": [[2, 2], [9, 2], [9, 9]]}


def _copy(name: str) -> Prepare:
    """Return a function that copies a valid dataset to set/."""

    def prepare(root: Path) -> None:
        shutil.copytree(FIXTURES / "labels" / name, root / "set")

    return prepare


def _replace_masks(root: Path) -> None:
    shutil.copy(root / "photo.png", root / f"set/train/Annotations/{VIDEO}/00000.png")


def _case(case: str, fixture: str, prepare: Prepare, *expected: str, split: str = "train") -> Case:
    command = f"data convert --output out --dataset set --splits {split}"
    return Case(f"{fixture}: {case}", command, expected, steps(_copy(fixture), prepare))


def _reasonseg(case: str, content: Any, *expected: str) -> Case:
    return _case(case, "reasonseg", write("set/train/1001.json", content), "1001.json", *expected)


def _shapes(case: str, shapes: Any, *expected: str) -> Case:
    return _reasonseg(case, {"text": ["it"], "is_sentence": False, "shapes": shapes}, "'shapes'", *expected)


def _video(case: str, fields: dict[str, Any], *expected: str) -> Case:
    content = {"expressions": {"0": {"exp": "it", "obj_id": "1"}}, "frames": ["00000"]} | fields
    file = "set/meta_expressions/train/meta_expressions.json"
    return _case(case, "ref_youtube_vos", write(file, {"videos": {VIDEO: content}}), *expected)


def _phrase(case: str, fields: dict[str, Any], *expected: str) -> Case:
    def prepare(root: Path) -> None:
        file = root / "set" / "refer_train.json"
        tasks = json.loads(file.read_text())
        tasks[0] |= fields
        file.write_text(json.dumps(tasks))

    return _case(case, "phrasecut", prepare, "refer_train.json: task ", *expected)


CASES = [
    _reasonseg("JSON is cut", '{"text": ["it"', "expected JSON", "copy or download it again"),
    _reasonseg("a list", [1], "expected a JSON object with 'text' and 'shapes'", "fix it"),
    _reasonseg("UTF-16", '{"text": "it"}'.encode("utf-16"), "got another encoding", "save it as UTF-8"),
    _reasonseg("text is a number", {"text": 3, "shapes": [TARGET]}, "'text': expected a sentence", "got 3", "add"),
    _shapes("shapes are text", "x", "expected a list of shapes", "got 'x'", "fix it"),
    _shapes("point as text", [TARGET | {"points": [["1", 2]]}], "shape 0: 'points'", "expected numbers", "fix them"),
    _shapes("far outside", [TARGET | {"points": [[1, 10**9]]}], "within 400 pixels", "fix them"),
    _shapes("only ignored", [TARGET | {"label": "ignore"}], "a shape with the label 'target'", "fix the shapes"),
    _case(
        "image missing",
        "reasonseg",
        lambda root: (root / "set/train/1001.jpg").unlink(),
        "1001.json",
        "1001.jpg is missing",
        "add the image",
    ),
    _case(
        "split without masks", "ref_youtube_vos", lambda root: None, "not public", "load its split train", split="val"
    ),
    _video(
        "frames are text", {"frames": "00000"}, f"video '{VIDEO}'", "expected a list of texts as 'frames'", "fix it"
    ),
    _video("object is text", {"expressions": {"0": {"exp": "it", "obj_id": "x"}}}, "'obj_id' from 1 to 255", "fix it"),
    _video(
        "no sentence",
        {"expressions": {"0": {"obj_id": "1"}}},
        "'exp'",
        "expected sentences of non-blank text",
        "write",
    ),
    _video("masks missing", {"frames": ["00001"]}, "00001.png", "masks of the frame are missing", "add the file"),
    _case(
        "mask is a photo",
        "ref_youtube_vos",
        _replace_masks,
        "00000.png",
        "expected a palette image",
        "extract the dataset's archive again",
    ),
    _phrase("flat polygon", {"Polygons": [[3, 3, 13, 3, 13, 23]]}, "'Polygons'", "expected points", "fix them"),
    _phrase("image id as text", {"image_id": "x"}, "expected an integer as 'image_id'", "got 'x'", "fix it"),
    _phrase("image missing", {"image_id": 7}, "7.jpg is missing", "add the image"),
    _phrase("phrase is a number", {"phrase": 3}, "'phrase'", "got 3", "add a sentence"),
    _phrase("outside", {"Polygons": [[[[90, 90], [99, 90], [99, 99]]]]}, "within the image of 40x30", "fix it"),
    _case("a mapping", "phrasecut", write("set/refer_train.json", {"Polygons": 1}), "expected a list", "download it"),
]
