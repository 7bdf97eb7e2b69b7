"""The reader for ReasonSeg. Masks: https://github.com/dvlab-research/LISA/blob/main/utils/data_processing.py"""

import json
import shutil

import numpy as np
import pytest

from detris_peft.data import BadRowError, BadRows, DataSource, decode_mask
from detris_peft.data.readers import find_reader
from detris_peft.data.readers.labels.reasonseg import ReasonSegReader
from tests.helpers.reference import FIXTURES

SET = FIXTURES / "labels" / "reasonseg"
SQUARE = [[2, 2], [9, 2], [9, 9], [2, 9]]


def box(x1, y1, x2, y2):
    """Return a mask (30, 40) of the pixels from (x1, y1) to (x2, y2), both included, as OpenCV fills polygons."""
    mask = np.zeros((30, 40), np.uint8)
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    return mask


@pytest.fixture
def folder(tmp_path):
    """A set with one image in its split train."""
    (tmp_path / "set" / "train").mkdir(parents=True)
    shutil.copy(SET / "train" / "1001.jpg", tmp_path / "set" / "train")
    return tmp_path / "set"


def write(folder, **changes):
    content = {"text": ["it"], "is_sentence": False, "shapes": [{"label": "target", "points": SQUARE}]} | changes
    (folder / "train" / "1001.json").write_text(json.dumps(content))
    return DataSource(str(folder))


def test_an_image_is_a_row_with_all_its_texts():
    source = DataSource(str(SET))
    assert source.splits() == ["train", "val"]
    rows = source.load("train")
    assert rows["sentences"][:] == [
        ["the part of the table on which a cup could be put", "where can I put my cup?"],
        ["the drink that a café sells most"],  # in Windows-1252
    ]
    assert rows["file_name"][:] == ["1001.jpg", "1002.jpg"]
    assert (set(rows["dataset"]), set(rows["split"])) == ({"reasonseg"}, {"train"})
    assert len({*rows["ref_id"], *source.load("val")["ref_id"]}) == 3
    assert [rows[0]["image"].size, rows[1]["image"].size] == [(40, 30), (30, 40)]


def test_a_region_to_ignore_is_cut_out_but_not_a_smaller_target_in_it():
    mask = decode_mask(DataSource(str(SET)).load("train")[0]["mask"])
    expected = box(2, 2, 30, 20) - box(10, 8, 20, 16) + box(14, 10, 17, 13)
    assert np.array_equal(mask, expected)


def test_shapes_are_drawn_in_order_of_their_area_not_of_the_file(folder):
    shapes = [
        {"label": "target", "points": SQUARE},
        {"label": "IGNORE this", "points": [[0, 0], [20, 0], [20, 20], [0, 20]]},
        {"label": "flag", "points": [[0, 0], [39, 0], [39, 29], [0, 29]]},
    ]
    for order in (shapes, shapes[::-1]):
        assert np.array_equal(decode_mask(write(folder, shapes=order).load("train")[0]["mask"]), box(2, 2, 9, 9))


def test_a_line_has_the_width_of_a_pixel(folder):
    source = write(folder, shapes=[{"label": "target", "points": [[3, 5], [8.9, 5.9]]}])
    assert np.array_equal(decode_mask(source.load("train")[0]["mask"]), box(3, 5, 8, 5))


def test_detection_needs_the_fields_that_labelme_lacks(folder):
    reader = ReasonSegReader()
    assert find_reader(DataSource(str(SET))).name == find_reader(DataSource(str(SET / "train"))).name == "reasonseg"
    assert DataSource(str(SET / "train")).splits() == ["train"]
    source = write(folder)
    assert reader.detect(source)
    (folder / "train" / "1001.json").write_text(
        json.dumps({"version": "5.4.1", "flags": {}, "shapes": [], "imagePath": "1001.jpg", "text": "is_sentence"})
    )
    assert not reader.detect(source)
    assert not reader.detect(DataSource(str(SET / "train" / "1001.json")))
    assert not reader.detect(DataSource(str(FIXTURES)))


BAD = {
    "shapes": ({"shapes": None}, "row_malformed", "'shapes': expected a list of shapes, got nothing"),
    "shape": ({"shapes": [3]}, "row_malformed", "shape 0: expected an object with 'label' and 'points', got 3"),
    "label": ({"shapes": [{"label": 3, "points": SQUARE}]}, "row_malformed", "shape 0: expected an object with"),
    "points": ({"shapes": [{"label": "target", "points": "x"}]}, "mask_malformed", r"expected points \[\[x, y\]"),
    "no points": ({"shapes": [{"label": "target", "points": []}]}, "mask_malformed", "'points', got none"),
    "NaN": ({"shapes": [{"label": "target", "points": [[1, float("nan")]]}]}, "mask_malformed", "expected numbers"),
    "far": ({"shapes": [{"label": "target", "points": [[1, 1e9]]}]}, "mask_malformed", "within 400 pixels"),
    "outside": (
        {"shapes": [{"label": "target", "points": [[50, 50], [60, 50], [60, 60]]}]},
        "mask_empty",
        "expected a shape with the label 'target' within the image of 40x30 pixels",
    ),
    "only ignored": ({"shapes": [{"label": "ignore", "points": SQUARE}]}, "mask_empty", "that no 'ignore' covers"),
    "text": ({"text": [3]}, "row_malformed", "'text': expected sentences of text, got 3"),
    "blank": ({"text": " "}, "row_malformed", "'text': expected sentences of non-blank text"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), BAD.values(), ids=BAD)
def test_an_invalid_file_is_named(folder, changes, kind, message):
    source = write(folder, **changes)
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert caught.value.kind == kind
    assert str(folder / "train" / "1001.json") in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_bad_row(folder):
    shutil.copy(SET / "train" / "1002.jpg", folder / "train")
    shutil.copy(SET / "train" / "1002.json", folder / "train")
    source = write(folder)
    contents = (b"{", b"[]", b"{}", '{"text": "a"}'.encode("utf-16"), b'{"text": "\x81", "shapes": []}')
    for content in contents:
        (folder / "train" / "1001.json").write_bytes(content)
        bad_rows = BadRows()
        assert len(source.load("train", bad_rows)) == 1, content
        assert len(bad_rows) == (content != b"{}")  # an object without text is no bad row
        assert all("1001.json" in str(error) and "\n" not in str(error) for error in bad_rows)


def test_a_missing_image_and_no_text_at_all_are_named(folder):
    source = write(folder, text=None)
    with pytest.raises(ValueError, match=r"got 1 objects without any; write sentences in 'text' of the JSON files"):
        source.load("train")
    source = write(folder)
    (folder / "train" / "1001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1001\.json: .*1001\.jpg is missing; add the image"):
        source.load("train")


def test_the_suffix_of_an_image_may_be_in_upper_case(folder):
    source = write(folder)
    (folder / "train" / "1001.jpg").rename(folder / "train" / "1001.JPG")
    assert source.load("train")["file_name"] == ["1001.JPG"]
