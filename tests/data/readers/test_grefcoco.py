"""The gRefCOCO reader: several targets, one, or none."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from detris_peft.data import FEATURES, decode_mask
from detris_peft.data.errors import BadRowError, BadRows
from detris_peft.data.readers.grefcoco import load_grefer

SIDE = 20
LEFT, RIGHT = [2, 2, 8, 2, 8, 8, 2, 8], [6, 6, 14, 6, 14, 14, 6, 14]  # overlapping


@pytest.fixture
def references():
    ann_ids = {0: [10], 1: [10, 11], 2: [-1], 3: []}
    return [
        {
            "ref_id": number,
            "ann_id": ids,
            "image_id": 1,
            "category_id": [5] * len(ids) if number < 2 else [-1],
            "no_target": number >= 2,
            "split": "val",
            "file_name": "COCO_train2014_1_0.jpg",
            "sent_ids": [number],
            "sentences": [{"sent_id": number, "sent": f"sentence {number}", "raw": "", "tokens": [], "exist": True}],
        }
        for number, ids in ann_ids.items()
    ]


@pytest.fixture
def write(tmp_path):
    def write(references, name="grefs(unc).json"):
        folder, image_folder = tmp_path / "grefcoco", tmp_path / "images/train2014"
        folder.mkdir(exist_ok=True)
        image_folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(image_folder / "1.jpg")
        images = [{"id": 1, "file_name": "1.jpg", "height": SIDE, "width": SIDE}]
        annotations = [
            {"id": 10 + i, "image_id": 1, "category_id": 5, "iscrowd": 0, "segmentation": [polygon]}
            for i, polygon in enumerate((LEFT, RIGHT))
        ]
        (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        content = json.dumps(references).encode() if name.endswith("json") else pickle.dumps(references, 2)
        (folder / name).write_bytes(content)
        return tmp_path

    return write


def _box(corners):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    x, y = corners[::2], corners[1::2]
    mask[min(y) : max(y), min(x) : max(x)] = 1
    return mask


@pytest.mark.parametrize("name", ["grefs(unc).json", "grefs(unc).p"])
def test_masks_are_the_union_of_all_targets(write, references, name):
    rows = load_grefer(write(references, name), "val")
    assert rows.features == FEATURES
    assert rows["no_target"][:] == [False, False, True, True]
    assert rows["ann_ids"][:] == [[10], [10, 11], [], []]
    assert rows["ann_id"][:] == [10, 10, -1, -1]
    assert rows["category_id"][:] == [5, 5, -1, -1]
    assert rows["dataset"][:] == ["grefcoco"] * 4
    empty = np.zeros((SIDE, SIDE), np.uint8)
    for row, expected in zip(rows, (_box(LEFT), _box(LEFT) | _box(RIGHT), empty, empty), strict=True):
        np.testing.assert_array_equal(decode_mask(row["mask"]), expected)
        assert row["image"].size == (SIDE, SIDE)


def test_a_single_ann_id_and_a_missing_no_target_are_accepted(write, references):
    for reference in references:
        del reference["no_target"]
    references[0].update(ann_id=10, category_id=5)
    references[1].update(ann_id=[10, 11, 10])
    references[2].update(ann_id=-1, category_id=-1)
    rows = load_grefer(write(references), "val")
    assert rows["ann_ids"][:] == [[10], [10, 11], [], []]
    assert rows["no_target"][:] == [False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ann_id": [10, -1]}, r"expected annotation ids in 'ann_id', .* got \[10, -1\]"),
        ({"ann_id": None}, "expected annotation ids in 'ann_id', .* got nothing"),
        ({"ann_id": ["10"]}, r"expected annotation ids in 'ann_id', .* got \['10'\]"),
        ({"no_target": True}, r"expected 'ann_id' to agree with 'no_target' True, got \[10, 11\]"),
        ({"ann_id": [-1]}, r"expected 'ann_id' to agree with 'no_target' False, got \[-1\]"),
        ({"no_target": "no"}, "expected 'no_target' of type bool, got 'no'"),
        ({"ann_id": [10, 99]}, "no annotation 99"),
        ({"ref_id": 0}, "expected a unique 'ref_id', got 0"),
    ],
)
def test_a_malformed_reference_is_named(write, references, changes, words):
    references[1].update(changes)
    root = write(references)
    with pytest.raises(BadRowError, match=words) as caught:
        load_grefer(root, "val")
    assert "grefs(unc).json: reference" in str(caught.value)
    assert "\n" not in str(caught.value)
    bad_rows = BadRows()
    assert load_grefer(root, "val", bad_rows=bad_rows)["ref_id"][:] == [0, 2, 3]
    assert [str(error) for error in bad_rows] == [str(caught.value)]


def test_missing_and_damaged_files_are_named(write, references):
    root = write(references)
    with pytest.raises(ValueError, match="no split 'train', expected one of val"):
        load_grefer(root, "train")
    with pytest.raises(FileNotFoundError, match=r"grefs\(umd\).json: the file is missing; .* grefs\(unc\).json"):
        load_grefer(root, "val", split_by="umd")
    (root / "grefcoco/grefs(unc).json").write_text("[1")
    with pytest.raises(ValueError, match="expected JSON"):
        load_grefer(root, "val")
