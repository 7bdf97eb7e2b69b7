"""DataSource selects the reader for a name or path, and checks the options."""

import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import HfArgumentParser

from detris_peft.cli import main
from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows
from detris_peft.data.refshapes import write_refshapes
from detris_peft.data.sources import DataSource
from detris_peft.safe_loading import load_plain_pickle

DOC = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text(encoding="utf-8")
OUTLINE = [2, 1, 6, 1, 6, 4, 2, 4]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Create a working folder whose `data` has one dataset of each format."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "data"
    write_refshapes(root, train=3, val=2, test=2)
    for name, split_by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("grefcoco", "unc")):
        shutil.copytree(root / "refshapes", root / name)
        (root / name / "refs(unc).p").rename(root / name / f"refs({split_by}).p")
    references = load_plain_pickle(root / "grefcoco" / "refs(unc).p")
    (root / "grefcoco" / "refs(unc).p").unlink()
    references = [reference | {"ann_id": [reference["ann_id"]]} for reference in references]
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(references))
    image = Image.new("RGB", (8, 6))
    for split in ("train", "val"):
        (root / "flowers" / split).mkdir(parents=True)
        image.save(root / "flowers" / split / "a.png")
        line = {"file_name": "a.png", "sentence": split, "mask": OUTLINE}
        (root / "flowers" / split / "metadata.jsonl").write_text(json.dumps(line))
        (root / "coco").mkdir(exist_ok=True)
        annotation = {"id": 1, "image_id": 1, "segmentation": [OUTLINE], "sentence": split}
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [annotation]}
        (root / "coco" / f"{split}.json").write_text(json.dumps(content))
        (root / "table" / "data").mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_dict({"img": [image], "caption": [split], "box": [[0, 0, 3, 3]]})
        rows.cast_column("img", datasets.Image()).to_parquet(
            root / "table" / "data" / f"{split}-00000-of-00001.parquet"
        )
    image.save(root / "coco" / "a.png")
    return root


COLUMNS = "image=img,sentences=caption,box=box"
SOURCES = {
    "refer": ({"dataset": "refshapes"}, ["train", "val", "testA", "testB"]),
    "refer by path": ({"dataset": "data/refshapes", "data_root": "elsewhere"}, ["train", "val", "testA", "testB"]),
    "grefer": ({"dataset": "grefcoco"}, ["train", "val", "testA", "testB"]),
    "mixed": ({"dataset": "mixed", "leak": "keep"}, ["train", "val", "testA", "testB"]),
    "folder": ({"dataset": "flowers"}, ["train", "val"]),
    "folder by path": ({"dataset": "data/flowers", "data_root": "elsewhere"}, ["train", "val"]),
    "coco": ({"dataset": "coco/{split}.json"}, ["train", "val"]),
    "coco by path": ({"dataset": "data/coco/{split}.json", "data_root": "elsewhere"}, ["train", "val"]),
    "one coco file": ({"dataset": "coco/val.json"}, ["train"]),
    "coco images": ({"dataset": "coco/{split}.json", "image_folder": "flowers/val"}, ["train", "val"]),
    "parquet": ({"dataset": "table", "columns": COLUMNS}, ["train", "val"]),
    "stream": ({"dataset": "table", "columns": COLUMNS, "streaming": True}, ["train", "val"]),
}


@pytest.mark.parametrize(("fields", "splits"), SOURCES.values(), ids=SOURCES)
def test_every_format_is_detected(data, fields, splits):
    source = DataSource(**fields)
    assert source.splits() == splits
    for split in splits:
        rows = source.load(split)
        assert rows.features == FEATURES
        assert isinstance(rows, datasets.IterableDataset) == source.streaming
        for row in rows:
            assert row["split"] == split
    with pytest.raises(ValueError, match="no split 'dev'"):
        source.load("dev")


def test_mixed_drops_leaking_images_by_default(data):
    references = load_plain_pickle(data / "refcoco" / "refs(unc).p")
    images = {reference["image_id"] for reference in references if reference["split"] == "train"}
    leaking = min(images)  # a validation image of refcoco that the two others train on
    changed = [one | {"split": "val"} if one["image_id"] == leaking else one for one in references]
    (data / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(changed))
    kept, dropped = (DataSource("mixed", leak=leak).load("train") for leak in ("keep", None))
    assert set(kept["image_id"]) == images
    assert set(dropped["image_id"]) == images - {leaking}


def test_bad_rows_are_collected(data):
    with open(data / "flowers" / "train" / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "missing.png", "sentence": "x", "mask": [1, 2]}\n')
    bad_rows = BadRows()
    assert len(DataSource("flowers").load("train", bad_rows)) == 1
    assert bad_rows.counts() == {"image_missing": 1}


def test_a_split_without_a_valid_row_is_an_error_that_names_the_first(data):
    lines = '{"file_name": "a.png", "sentence": " ", "mask": [1, 2]}\n' * 2
    (data / "flowers" / "train" / "metadata.jsonl").write_text(lines)
    bad_rows = BadRows([BadRowError("of another split")])
    with pytest.raises(ValueError, match=r"flowers train: expected at least one valid row, got 2 invalid; .* line 1"):
        DataSource("flowers").load_valid("train", bad_rows)
    assert len(DataSource("flowers").load("train", bad_rows)) == 0


WRONG = {
    "no root": ({"data_root": "nowhere"}, "nowhere: the data root is missing; pass the folder that holds 'refcoco'"),
    "no dataset": (
        {"dataset": "refclef"},
        "data/refclef: the dataset's folder is missing; data has coco, empty, flowers, gref",
    ),
    "empty": (
        {"dataset": "empty"},
        "data/empty: expected a dataset, got a folder with notes.txt; pass one of these formats, .*: .* COCO JSON, ",
    ),
    "a file": (
        {"dataset": "empty/notes.txt"},
        r"notes\.txt: expected a dataset, got a file of none of these formats: .*, REFER, ",
    ),
    "no json": ({"dataset": "none.json"}, r"none\.json: no such file, also not below data"),
    "no jsons": ({"dataset": "none/{split}.json"}, r"no such file, also not below data"),
    "split_by": ({"dataset": "refshapes", "split_by": "umd"}, r"refs\(umd\)\.p: the file is missing.*refs\(unc\)\.p"),
    "leak": (
        {"dataset": "flowers", "leak": "drop"},
        "--leak drop: expected one of the formats RefCOCO, .* mixed, got flowers, which is a folder with .*; omit",
    ),
    "columns": (
        {"dataset": "flowers", "columns": COLUMNS},
        r"--columns: expected one of the formats CSV or JSON Lines, Hub .*, got flowers",
    ),
    "streaming": (
        {"dataset": "refshapes", "streaming": True},
        "--streaming: expected one of the formats Hub dataset or parquet, got refshapes",
    ),
    "leak value": ({"dataset": "mixed", "leak": "maybe"}, "--leak: expected keep or drop, got maybe"),
    "no columns": (
        {"dataset": "table"},
        "data/table: expected the columns image, sentences, mask, got img, caption, box; pass",
    ),
    "no mapping": ({"dataset": "table", "columns": "mine"}, "mine: no such column mapping"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_errors_say_what_was_found_and_what_is_accepted(data, fields, message):
    (data / "empty").mkdir()
    (data / "empty" / "notes.txt").touch()
    with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
        DataSource(**fields).load("train")
    assert "\n" not in str(caught.value)


def test_fields_are_command_line_options():
    parser = HfArgumentParser(DataSource)
    line = ["--dataset", "user/name", "--columns", "lmms-lab-refcoco", "--streaming", "--leak", "keep"]
    (source,) = parser.parse_args_into_dataclasses(line)
    assert source == DataSource("user/name", columns="lmms-lab-refcoco", streaming=True, leak="keep")
    assert "{split}" in " ".join(parser.format_help().split())


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Create the files that docs/your-own-data.md starts from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    photo, mask = Image.new("RGB", (8, 6)), np.zeros((6, 8), np.uint8)
    mask[1:4, 2:6] = 255
    for split in ("train", "val"):
        (tmp_path / "flowers" / split / "masks").mkdir(parents=True)
        for name in ("0001", "0002"):
            photo.save(tmp_path / "flowers" / split / f"{name}.jpg")
            Image.fromarray(mask).save(tmp_path / "flowers" / split / "masks" / f"{name}.png")
        images = [{"id": 1, "file_name": f"{split}/0001.jpg"}]
        annotations = [{"id": number, "image_id": 1, "segmentation": [OUTLINE]} for number in (1, 2, 3)]
        content = json.dumps({"images": images, "annotations": annotations})
        (tmp_path / "flowers" / f"{split}.json").write_text(content)
    (tmp_path / "roses").mkdir()
    row = {"photo": [photo], "captions": [[{"text": "a rose"}]], "outline": [[OUTLINE]], "id": [3]}
    roses = datasets.Dataset.from_dict(row).cast_column("photo", datasets.Image())
    roses.to_parquet(tmp_path / "roses" / "train.parquet")
    (tmp_path / "roses.yaml").write_text(blocks("yaml")[0])


def test_the_code_in_the_documentation_runs(photographs, capsys):
    write_metadata, write_coco, stream_roses = blocks("python")
    for split in ("train", "val"):
        exec(write_metadata.replace("flowers/train", f"flowers/{split}"), {})
    exec(write_coco, {})
    with pytest.raises(
        ValueError, match=r"got those of COCO JSON files and metadata\.jsonl; pass --format coco_folder"
    ):
        DataSource("flowers").splits()
    for source in (DataSource("flowers", format="folder"), DataSource("flowers/{split}.json")):
        assert source.splits() == ["train", "val"]
        for split in source.splits():
            rows = source.load(split)
            assert rows[1]["sentences"] == ["the tulip behind the fence"]
            assert [int(decode_row(row)[1].sum()) for row in rows] == [12, 12]
    assert len(datasets.load_dataset("flowers")["train"]) == 2
    exec(stream_roses, {})
    assert capsys.readouterr().out.strip().endswith("['a rose']")


def test_the_commands_in_the_documentation_have_these_options(capsys):
    for line in "".join(blocks("bash")).replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "detris"
        names = words[: next(i for i, word in enumerate(words) if word.startswith("--"))]
        with pytest.raises(SystemExit):
            main([*names, "--help"])
        known = capsys.readouterr().out.split()
        assert {word for word in words if word.startswith("--")} <= set(known), line


def test_a_folder_whose_replacement_was_killed_is_read(data):
    """Between its two renames, `detris data convert --overwrite` leaves no folder of this name."""
    (data / "flowers").rename(data / ".flowers.previous")
    (data / ".flowers.0123abcd.part").mkdir()
    assert DataSource("flowers").splits() == ["train", "val"]
    assert not [path for path in data.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["flowers/", "data/flowers/", "flowers//"])
def test_a_trailing_slash_is_ignored(data, name):
    source = DataSource(name)
    assert source.dataset == name.rstrip("/")
    assert source.load("train")[0]["dataset"] == "flowers"


def test_an_image_folder_of_a_format_without_one_is_an_error(data):
    with pytest.raises(ValueError, match=r"--image_folder: expected .*, got flowers, .*; omit the option"):
        DataSource("flowers", image_folder="images").load("train")
