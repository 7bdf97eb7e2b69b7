"""COCO instances files and options with which `detris data describe` cannot make sentences."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.case import Case, Prepare, steps, write

OUTLINE = [8, 8, 30, 8, 30, 30, 8, 30]
DESCRIBE = "data describe --dataset coco.json --output out"


def coco(**changes: Any) -> Prepare:
    """Return a function that writes coco.json with one image and one annotation; None removes a list."""
    content = {
        "images": [{"id": 1, "file_name": "folder/train/0.png"}],
        "annotations": [annotation()],
        "categories": [{"id": 3, "name": "square"}],
        **changes,
    }
    return write("coco.json", {name: value for name, value in content.items() if value is not None})


def annotation(**changes: Any) -> dict[str, Any]:
    """Return an annotation with changed fields; None removes a field."""
    fields = {"id": 7, "image_id": 1, "category_id": 3, "segmentation": [OUTLINE], "iscrowd": 0, **changes}
    return {name: value for name, value in fields.items() if value is not None}


def _file(case: str, prepare: Prepare, *expected: str) -> Case:
    return Case(f"describe: {case}", DESCRIBE, expected, prepare)


def _annotation(case: str, changes: dict[str, Any], *expected: str) -> Case:
    return _file(case, coco(annotations=[annotation(**changes)]), *expected)


def _option(case: str, options: str, *expected: str) -> Case:
    return Case(f"describe: {case}", f"{DESCRIBE} {options}", expected, coco())


CASES = [
    # -- the dataset
    Case(
        "describe: dataset does not exist",
        "data describe --dataset no.json --output out",
        ("no.json", "no such file", "pass a"),
    ),
    Case(
        "describe: folder dataset",
        "data describe --dataset folder --output out",
        ("--dataset folder", "expected masks with classes", "a folder with metadata.jsonl", "pass the export of a"),
    ),
    Case(
        "describe: REFER dataset",
        "data describe --dataset refshapes --output out",
        ("--dataset refshapes", "expected masks with classes", "COCO JSON"),
    ),
    Case(
        "describe: nothing at this name", "data describe --dataset nothing --output out", ("data/nothing", "missing")
    ),
    Case("describe: output missing", "data describe --dataset coco.json", ("expected --output", "add it"), code=2),
    _file("not JSON", write("coco.json", "{"), "coco.json", "expected JSON"),
    _file("a list", write("coco.json", []), "expected COCO JSON", "got a list", "pass another file"),
    _file("no annotations list", coco(annotations=None), "'annotations'", "pass another file"),
    _file("empty annotations", coco(annotations=[]), "expected at least one row", "add rows"),
    _file("no categories", coco(categories=None), "expected COCO instances with the list 'categories'", "add the ids"),
    _file("empty categories", coco(categories=[]), "'categories', got []", "add the ids and names"),
    _file("categories of text", coco(categories=["square"]), "'categories', got ['square']", "add the ids"),
    _file("category without id", coco(categories=[{"name": "a"}]), "category nothing", "fix the id"),
    _file(
        "category without name", coco(categories=[{"id": 3}]), "category 3", "'name', got nothing", "name the class"
    ),
    _file("category of blank name", coco(categories=[{"id": 3, "name": " _"}]), "'name', got ' _'", "name the class"),
    _file(
        "category of an HTML space", coco(categories=[{"id": 3, "name": "&nbsp;"}]), "'name', got '&nbsp;'", "name the"
    ),
    _file("category without a letter", coco(categories=[{"id": 3, "name": "..."}]), "'name', got '...'", "name the"),
    _file("category name of two lines", coco(categories=[{"id": 3, "name": "a\nb"}]), "'name'", "name the class"),
    _file("category name of half a surrogate", coco(categories=[{"id": 3, "name": "a\ud800"}]), "'name'", "name the"),
    _file(
        "two names of one category",
        coco(categories=[{"id": 3, "name": "a"}, {"id": "3", "name": "b"}]),
        "category '3': expected one name, got 'a' and 'b'",
        "renumber one",
    ),
    # -- annotations
    _annotation(
        "unknown category", {"category_id": 5}, "annotation 7", "'category_id' among 'categories', got 5", "fix"
    ),
    _annotation("category missing", {"category_id": None}, "annotation 7", "'category_id'", "got nothing", "fix"),
    _annotation("category is a list", {"category_id": [3]}, "annotation 7", "'category_id'", "got [3]", "fix"),
    _annotation("unknown image", {"image_id": 2}, "annotation 7", "'image_id' among 'images', got 2", "fix the id"),
    _annotation("id missing", {"id": None}, "expected an 'id', got nothing", "add a unique id"),
    _annotation("id is a list", {"id": [1]}, "annotation [1]", "'id'", "fix the id"),
    _annotation("crowd of another type", {"iscrowd": "no"}, "'iscrowd'", "expected true or false", "fix the value"),
    _annotation("crowd of NaN", {"iscrowd": float("nan")}, "'iscrowd'", "expected true or false", "fix the value"),
    _annotation("mask missing", {"segmentation": None}, "annotation 7: 'segmentation'", "got nothing"),
    _annotation(
        "mask of NaN", {"segmentation": [[8, 8, float("nan"), 8, 30, 30]]}, "'segmentation'", "expected numbers"
    ),
    _annotation(
        "RLE of another size",
        {"segmentation": {"size": [4, 4], "counts": [8, 8]}},
        "'segmentation'",
        "[40, 48], got [4, 4]",
    ),
    _annotation("only a crowd", {"iscrowd": 1}, "expected at least one object", "got none", "lower --min_area"),
    _annotation("only a box", {"segmentation": [], "bbox": [8, 8, 9, 9]}, "1 crowds or without a mask", "add masks"),
    _annotation("only a tiny object", {"segmentation": [[8, 8, 9, 8, 9, 9, 8, 9]]}, "expected at least one object"),
    _file(
        "id of two annotations",
        coco(annotations=[annotation(), annotation()]),
        "annotation 7: expected a unique 'id'",
        "renumber one",
    ),
    _file("image without a name", coco(images=[{"id": 1}]), "'file_name'", "got nothing", "fix it"),
    _file("missing image", coco(images=[{"id": 1, "file_name": "no.png"}]), "no.png is missing", "add the image"),
    _file("image is a folder", coco(images=[{"id": 1, "file_name": "folder"}]), "folder", "got a folder"),
    _file(
        "image outside",
        coco(images=[{"id": 1, "file_name": "../x.png"}]),
        "expected an image in",
        "--allow_outside",
    ),
    _file(
        "image that is cut off",
        steps(coco(images=[{"id": 1, "file_name": "cut.png"}]), write("cut.png", b"\x89PNG\r\n\x1a\n\0\0")),
        "cut.png",
        "cannot be decoded",
    ),
    _file(
        "image of another size",
        coco(images=[{"id": 1, "file_name": "folder/train/0.png", "width": 40, "height": 48}]),
        "40x48 pixels as in coco.json",
        "fix the declared size",
    ),
    # -- options
    _option("split that does not exist", "--splits val", "no split 'val', expected one of train", "change --splits"),
    _option("empty split", "--splits ''", "--splits", "omit --splits for all"),
    _option("image folder that does not exist", "--image_folder no", "the image folder is missing", "--image_folder"),
    _option("minimum area above 1", "--min_area 1.5", "--min_area: expected a share", "got 1.5", "change it"),
    _option("minimum area below 0", "--min_area -0.1", "--min_area: expected a share", "got -0.1", "change it"),
    _option("minimum area of NaN", "--min_area nan", "--min_area: expected a share", "got nan", "change it"),
    _option("no expressions", "--max_expressions_per_object 0", "expected 1 or more, got 0", "change it"),
    _option("negative seed", "--seed -1", "--seed: expected 0 or more, got -1", "change it"),
    _option("preview in the output", "--preview out/x.png", "--preview out/x.png", "not in --output", "omit"),
    _option("preview is a folder", "--preview folder", "--preview folder", "got a folder", "add a file name"),
    _option("preview exists", "--preview photo.png", "--preview photo.png", "got an existing one", "--overwrite"),
    _option("preview that cannot be written", "--preview /proc/x.png", "/proc/", "check the path"),
    _option("preview is the dataset", "--overwrite --preview coco.json", "coco.json", "another file than the input"),
    Case(
        "describe: output is a folder of the user",
        "data describe --dataset coco.json --output backbones --overwrite",
        ("--output backbones", "with other files", "choose another folder"),
        coco(),
    ),
    Case(
        "describe: output is a converted dataset",
        f"{DESCRIBE} --overwrite",
        ("--output out", "got data/train-00000-of-00001.parquet", "choose another folder"),
        steps(coco(), write("out/.detris_peft", "dataset\n"), write("out/data/train-00000-of-00001.parquet", b"x")),
    ),
    Case(
        "describe: output is the working directory",
        "data describe --dataset coco.json --output .",
        ("--output .", "add a folder name"),
        coco(),
    ),
]
