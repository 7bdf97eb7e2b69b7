"""The reader for PhraseCut. Format and masks: https://github.com/ChenyunWu/PhraseCutDataset (`polygons_to_mask`)"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detris_peft.data import BadRowError, BadRows, DataSource, decode_mask, encode_mask
from detris_peft.data.readers import find_reader
from detris_peft.data.readers.labels.phrasecut import PhraseCutReader
from tests.helpers.reference import FIXTURES

SET = FIXTURES / "labels" / "phrasecut"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture that a test may change."""
    shutil.copytree(SET, tmp_path / "phrasecut")
    return tmp_path / "phrasecut"


def edit(folder, **changes):
    """Change fields of the second phrase; None removes one."""
    tasks = json.loads((SET / "refer_train.json").read_text())
    tasks[1] = {key: value for key, value in (tasks[1] | changes).items() if value is not None}
    (folder / "refer_train.json").write_text(json.dumps(tasks))
    return DataSource(str(folder))


def test_a_phrase_is_a_row_in_the_order_of_the_file():
    source = DataSource(str(SET))
    assert source.splits() == ["train", "miniv"]
    rows = source.load("train")
    assert rows["sentences"][:] == [["white dogs"], ["window on the left"], ["grass"]]
    assert rows["image_id"][:] == [2315357, 2337679, 2315357]
    assert rows["file_name"][:] == ["2315357.jpg", "2337679.jpg", "2315357.jpg"]
    assert len(set(rows["ref_id"])) == 3
    assert [row["image"].size for row in rows] == [(40, 30), (30, 40), (40, 30)]
    assert PhraseCutReader().load_objects(source, "train", None)["sentences"][:] == [["dogs"], ["window"], ["grass"]]
    assert source.load("miniv")["sentences"][:] == [["road"]]


def test_all_instances_are_drawn_as_by_pillow():
    mask = decode_mask(DataSource(str(SET)).load("train")[0]["mask"])
    expected = np.zeros((30, 40), np.uint8)
    expected[5:16, 5:16] = 1  # both edges are included
    expected[22:27, 32:37] = 1  # 36.5 is truncated
    triangle = Image.new("L", (40, 30))
    ImageDraw.Draw(triangle).polygon([(20, 5), (30, 5), (25, 20)], fill=1, outline=1)
    assert np.array_equal(mask, expected | np.asarray(triangle))
    polygons = [[5, 5, 15, 5, 15, 15, 5, 15], [20.7, 5.2, 30, 5, 25, 20], [32, 22, 36.5, 22, 36.5, 26, 32, 26]]
    coco = decode_mask(encode_mask(polygons, 30, 40))
    assert not (coco & ~mask).any()  # pycocotools leaves out one of the edges
    assert coco.sum() > 0.75 * mask.sum()


def test_images_may_be_in_the_folders_of_visual_genome(folder):
    for part, name in (("VG_100K", "2315357.jpg"), ("VG_100K_2", "2337679.jpg")):
        (folder.parent / "vg" / part).mkdir(parents=True)
        (folder / "images" / name).rename(folder.parent / "vg" / part / name)
    rows = DataSource("phrasecut", str(folder.parent), image_folder="vg").load("train")
    assert rows["file_name"][:2] == ["VG_100K/2315357.jpg", "VG_100K_2/2337679.jpg"]
    with pytest.raises(FileNotFoundError, match=r"images/2315357\.jpg is missing"):
        DataSource("phrasecut", str(folder.parent)).load("train")


def test_detection():
    assert find_reader(DataSource(str(SET))).name == "phrasecut"
    reader = PhraseCutReader()
    for other in ("reasonseg", "ref_youtube_vos"):
        assert not reader.detect(DataSource(str(SET.parent / other)))
    assert not reader.detect(DataSource(str(SET / "refer_train.json")))


def test_sizes_are_optional(folder):
    (folder / "image_data_split.json").unlink()
    assert len(DataSource(str(folder)).load("train")) == 3
    (folder / "image_data_split.json").write_text(json.dumps([{"image_id": 2337679, "height": 30, "width": 40}]))
    with pytest.raises(
        BadRowError, match=r"image of 40x30 pixels as in .*image_data_split\.json, got .*2337679\.jpg of"
    ):
        DataSource(str(folder)).load("train")
    for wrong in ('{"a": 1}', '[{"image_id": "x", "height": 1, "width": 1}]', "[3]"):
        (folder / "image_data_split.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"image_data_split\.json: entry 0: expected integers as 'image_id'"):
            DataSource(str(folder)).load("train")


BAD = {
    "image id": ({"image_id": "x"}, "row_malformed", "expected an integer as 'image_id', got 'x'"),
    "large image id": ({"image_id": 2**70}, "row_malformed", "expected an integer as 'image_id'"),
    "task id": ({"task_id": [1]}, "row_malformed", r"'task_id': expected an integer or text as the id, got \[1\]"),
    "phrase": ({"phrase": 3}, "row_malformed", "'phrase': expected a sentence or a list of sentences, got 3"),
    "blank": ({"phrase": " "}, "row_malformed", "'phrase': expected sentences of non-blank text"),
    "no polygons": ({"Polygons": None}, "mask_malformed", "'Polygons': expected a list of polygons .*, got nothing"),
    "flat": (
        {"Polygons": [[3, 3, 13, 3, 13, 23]]},
        "mask_malformed",
        r"expected points \[\[x, y\], ...\] in pixels, got 3",
    ),
    "text": ({"Polygons": [[[["3", 3], [13, 3], [13, 23]]]]}, "mask_malformed", "expected numbers as polygon coord"),
    "empty": ({"Polygons": [[[]]]}, "mask_empty", "expected a polygon within the image of 30x40 pixels, got none"),
    "outside": (
        {"Polygons": [[[[50, 50], [60, 50], [60, 60]]]]},
        "mask_empty",
        "'Polygons': expected a polygon within",
    ),
    "far": ({"Polygons": [[[[50, 50], [1e9, 50], [60, 60]]]]}, "mask_malformed", "within 400 pixels"),
    "image": ({"image_id": 7}, "image_missing", r"images/7\.jpg is missing; add the image"),
    "twice": ({"task_id": "2315357__1134503"}, "duplicate_id", "expected a unique 'id'"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), BAD.values(), ids=BAD)
def test_an_invalid_phrase_is_named(folder, changes, kind, message):
    source = edit(folder, **changes)
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert caught.value.kind == kind
    assert str(folder / "refer_train.json") in str(caught.value)
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 2
    assert bad_rows.counts() == {kind: 1}


def test_names_of_classes_are_optional_and_matter_only_where_they_are_used(folder):
    for structure in ({}, {"name": ""}, "dog", None):
        objects = PhraseCutReader().load_objects(edit(folder, phrase_structure=structure), "train", None)
        assert objects["sentences"][1] == ["object"]
    source = edit(folder, phrase_structure={"name": 3})
    assert len(source.load("train")) == 3
    with pytest.raises(BadRowError, match="expected text as 'name' in 'phrase_structure', got 3"):
        PhraseCutReader().load_objects(source, "train", None)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("{}", "expected a list of phrases, got {}")])
def test_a_file_of_another_form_is_named(folder, text, message):
    (folder / "refer_train.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        DataSource(str(folder)).load("train")
    (folder / "refer_train.json").write_text("[3]")
    with pytest.raises(BadRowError, match=r"refer_train\.json: entry 0: expected an object, got 3"):
        DataSource(str(folder)).load("train")
