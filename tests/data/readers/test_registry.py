"""Readers from outside the package: register, detect, load through DataSource, unregister."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detris_peft.data import (
    FEATURES,
    BadRowError,
    BadRows,
    DatasetReader,
    DataSource,
    encode_mask,
    make_row,
    register_reader,
    to_dataset,
    unregister_reader,
)
from detris_peft.data.errors import reject
from detris_peft.data.readers import dataset_path, find_reader, registered_readers

BUILT_IN = [
    "mixed",
    "cvat",
    "label_studio",
    "labelme",
    "pascal_voc",
    "phrasecut",
    "reasonseg",
    "ref_youtube_vos",
    "via",
    "yolo",
    "coco",
    "coco_folder",
    "grefcoco",
    "refer",
    "folder",
    "table",
    "hub",
]
SIDE = 4


class ToyReader(DatasetReader):
    """Reads {split: {sentence: image file}} from *.toy.json; the target fills the image."""

    name = "toy"
    accepts = "a .toy.json file"
    options = ("columns",)

    def detect(self, source):
        return source.dataset.endswith(".toy.json")

    def splits(self, source):
        return json.loads(dataset_path(source).read_text())

    def load(self, source, split, bad_rows):
        path, rows = dataset_path(source), []
        for number, (sentence, image) in enumerate(json.loads(path.read_text())[split].items()):
            if not sentence:
                reject(BadRowError(f"{path}: expected a sentence, got nothing; write one"), bad_rows)
                continue
            rows.append(
                make_row(
                    image=str(path.parent / image),
                    sentences=[sentence, source.columns or "no columns"],
                    mask=encode_mask([[0, 0, SIDE, 0, SIDE, SIDE, 0, SIDE]], SIDE, SIDE),
                    ref_id=number,
                    ann_ids=[number],
                    image_id=0,
                    split=split,
                    dataset=self.name,
                    file_name=image,
                )
            )
        return to_dataset(rows)

    def shared_images(self, source):
        return "it has one image"


@pytest.fixture
def toy(tmp_path):
    """Register the toy reader, and create a file for it."""
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    content = {"val": {"a square": "a.png"}, "train": {"the square": "a.png", "": "a.png"}}
    (tmp_path / "squares.toy.json").write_text(json.dumps(content))
    register_reader(ToyReader(), before=BUILT_IN[1])
    yield DataSource("squares.toy.json", data_root=str(tmp_path), columns="its own")
    unregister_reader("toy")


def names():
    return [reader.name for reader in registered_readers()]


def test_a_registered_reader_loads_its_own_format(toy):
    assert names() == ["mixed", "toy", *BUILT_IN[1:]]
    assert toy.splits() == ["train", "val"]
    rows = toy.load("val")
    assert rows.features == FEATURES
    assert rows["sentences"][:] == [["a square", "its own"]]
    assert rows[0]["image"].size == (SIDE, SIDE)
    assert toy.may_leak() == "it has one image"
    bad_rows = BadRows()
    assert len(toy.load("train", bad_rows)) == 1
    assert bad_rows.counts() == {"row_malformed": 1}


def test_options_that_a_reader_does_not_list_are_rejected(toy):
    toy.columns, toy.streaming = None, True
    with pytest.raises(ValueError, match=r"--streaming: expected .* or parquet, got squares\.toy\.json, which is a"):
        toy.load("val")


def test_after_unregistering_the_format_is_unknown(toy):
    unregister_reader("toy")
    assert names() == BUILT_IN
    toy.columns = None
    with pytest.raises(ValueError, match="expected COCO JSON"):  # the first remaining reader that detects *.json
        toy.splits()
    register_reader(ToyReader())
    assert names() == [*BUILT_IN, "toy"]  # coco precedes it, but is generic
    assert toy.splits() == ["train", "val"]


def test_a_folder_of_two_formats_needs_the_name_of_one(toy):
    class Exclusive(Other):
        exclusive = True
        title = "Other tool"

    register_reader(Exclusive())
    try:
        with pytest.raises(
            ValueError, match="of one format, got those of toy and Other tool; pass --format toy or --fo"
        ):
            toy.load("train")
        toy.format = "toy"
        assert toy.splits() == ["train", "val"]
        toy.format = "tow"
        with pytest.raises(
            ValueError, match=r"--format: expected one of mixed, toy, .*coco, .*, got tow; pass one of"
        ):
            toy.splits()
    finally:
        unregister_reader("other")


def test_reader_names_are_unique_and_must_exist(toy):
    with pytest.raises(ValueError, match="expected a new reader name, got 'toy'"):
        register_reader(ToyReader())
    for call in (lambda: register_reader(Other(), before="none"), lambda: unregister_reader("none")):
        with pytest.raises(ValueError, match=r"expected one of the readers mixed, toy, .*coco, .*'none'"):
            call()
    assert "other" not in names()


class Other(ToyReader):
    name = "other"


@pytest.mark.parametrize(
    ("files", "reader"),
    [
        (["grefs(unc).json", "refs(unc).p", "metadata.jsonl", "a.parquet"], "grefcoco"),
        (["refs(unc).p", "metadata.jsonl", "a.parquet"], "refer"),
        (["instances.json", "train/metadata.jsonl"], "refer"),
        (["train/metadata.jsonl", "a.parquet"], "folder"),
        (["data/a.parquet"], "hub"),
    ],
)
def test_the_first_reader_that_detects_a_folder_reads_it(tmp_path, files, reader):
    for name in files:
        file = Path(tmp_path, "set", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    source = DataSource("set", data_root=str(tmp_path))
    assert find_reader(source).name == reader
