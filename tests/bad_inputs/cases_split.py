"""Datasets and options with which `detris data split` cannot make splits."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bad_inputs.case import Case, Prepare, steps, write

LINES = "folder/train/metadata.jsonl"
SPLIT = "data split --dataset folder --output out"


def _lines(*changes: dict) -> Prepare:
    """Return a function that changes fields of the first training lines and removes the other lines."""

    def prepare(folder: Path) -> None:
        file = folder / LINES
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        changed = [{**line, **change} for line, change in zip(lines, changes, strict=False)]
        file.write_text("".join(json.dumps(line) + "\n" for line in changed))

    return prepare


def _copies(folder: Path) -> None:
    """Replace all images by one."""
    data = (folder / "folder/train/1.png").read_bytes()
    for file in folder.glob("folder/*/?.png"):
        file.write_bytes(data)


def _option(case: str, options: str, *expected: str, code: int = 1) -> Case:
    return Case(f"split: {case}", f"{SPLIT} {options}", expected, code=code)


def _file(case: str, prepare: Prepare, *expected: str, options: str = "") -> Case:
    return Case(f"split: {case}", f"{SPLIT} {options}", expected, prepare)


CASES = [
    # -- the dataset
    Case("split: dataset does not exist", "data split --dataset nothing --output out", ("data/nothing", "missing")),
    Case("split: output missing", "data split --dataset folder", ("expected --output", "add it"), code=2),
    Case(
        "split: dataset without sentences",
        "data split --dataset coco.json --output out",
        ("coco.json", "sentence"),
        write(
            "coco.json",
            {
                "images": [{"id": 1, "file_name": "photo.png"}],
                "annotations": [{"id": 1, "image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
            },
        ),
    ),
    Case(
        "split: stream",
        "data split --dataset data/parquet --output out --streaming",
        ("--streaming", "expected"),
    ),
    _file("not JSON", write(LINES, "{\n"), LINES, "line 1", "fix the line"),
    _file("no line", steps(write(LINES, ""), write("folder/val/metadata.jsonl", "")), "folder", "add rows"),
    _file("missing image", _lines({"file_name": "no.png"}), "line 1", "no.png is missing", "add the image"),
    _file("damaged image", write("folder/train/0.png", b"\x89PNG\r\n\x1a\n\0\0"), "0.png", "cannot be decoded"),
    _file("mask of another size", _lines({"mask": "../../photo.png"}), "line 1", "'mask'", "got [40, 60]"),
    _file("image outside", _lines({"file_name": "../../photo.png", "mask": [1, 1, 9, 1, 9, 9]}), "--allow_outside"),
    # -- too few images
    _file(
        "two images for three splits",
        _lines({}, {}),
        "folder: expected at least 3 images for the splits train, val, test, got 2",
        "add images",
        "--fractions with two numbers",
        options="--splits train",
    ),
    _file(
        "one image for two splits",
        _lines({}),
        "expected at least 2 images for the splits train, val, got 1; add images",
        options="--splits train --fractions 0.5 0.5",
    ),
    _file(
        "only copies of one image",
        _copies,
        "got 6 images in 1 group of near-duplicates",
        "add other images",
        "lower --max_distance",
    ),
    _file(
        "every row is invalid",
        write("folder/train/metadata.jsonl", '{"file_name": "0.png"}\n'),
        "expected at least one",
        "got",
        options="--splits train --skip_bad_rows",
    ),
    # -- options
    _option("split that does not exist", "--splits test", "no split 'test'", "train, val"),
    _option("empty split", "--splits ''", "--splits", "omit --splits for all"),
    _option("one fraction", "--fractions 1", "--fractions: expected two or three numbers", "got 1", "0.8 0.1 0.1"),
    _option("four fractions", "--fractions 0.7 0.1 0.1 0.1", "--fractions: expected two or three numbers"),
    _option("fractions above 1", "--fractions 80 10 10", "expected a sum of 1", "whose sum is 100", "change them"),
    _option("negative fraction", "--fractions 1.1 -0.1", "--fractions: expected numbers above 0", "got 1.1 -0.1"),
    _option("no validation images", "--fractions 1 0", "--fractions: expected numbers above 0", "got 1 0"),
    _option("fraction of NaN", "--fractions nan 0.5", "--fractions: expected numbers above 0", "got nan 0.5"),
    _option("fraction of text", "--fractions most 0.5", "--fractions: expected a number, got 'most'", code=2),
    _option("negative seed", "--seed -1", "--seed: expected 0 or more, got -1", "change it"),
    _option("negative distance", "--max_distance -1", "--max_distance: expected 0 to 32, got -1", "change it"),
    _option("distance of most bits", "--max_distance 64", "--max_distance: expected 0 to 32, got 64", "change it"),
    _option("negative number of threads", "--num_workers -2", "--num_workers: expected 0 or more", "change it"),
    _option("empty output", "--output ''", "--output: expected a folder", "pass a name"),
    _option("report is a folder", "--report folder", "--report folder", "got a folder", "add a file name"),
    _option("report exists", "--report photo.png", "--report photo.png", "got an existing one", "--overwrite"),
    _option("report is the dataset", f"--report {LINES} --overwrite", LINES, "another file than the input"),
    _option("report in the output", "--report out/x.json", "--report out/x.json", "not in --output", "choose another"),
    _option("output is the dataset", "--output folder --overwrite", "--output folder", "dataset's own", "choose"),
    _option("output is in a file", "--output photo.png/out", "--output", "photo.png, which is a file", "change"),
    _option("output is a folder of the user", "--output backbones", "--output backbones", "with other files"),
    _option("output is the working directory", "--output .", "--output .", "add a folder name"),
    Case(
        "split: output is a converted dataset",
        f"{SPLIT} --overwrite",
        ("--output out", "got data/train-00000-of-00001.parquet", "choose another folder"),
        steps(write("out/.detris_peft", "dataset\n"), write("out/data/train-00000-of-00001.parquet", b"x")),
    ),
]
