"""The mixed reader: three datasets as one, without training images that any of them tests on."""

import json
import logging
import pickle

import pytest
from PIL import Image

from detris_peft.data.errors import BadRowError, BadRows
from detris_peft.data.readers.mixed import load_mixed

# Image ids by split. Images 3, 4 and 6 are in val or test of another dataset, 1 of its own.
SETS = {
    "refcoco/refs(unc).p": {"train": [1, 2, 3, 5], "val": [4], "testA": [1], "testB": [9]},
    "refcoco+/refs(unc).p": {"train": [2, 4, 5], "val": [6], "testA": [7], "testB": [8]},
    "refcocog/refs(umd).p": {"train": [5, 6, 7, 9, 10], "val": [3], "test": [11]},
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images/train2014").mkdir(parents=True)
    for name, splits in SETS.items():
        file = tmp_path / name
        file.parent.mkdir()
        references, ids = [], sorted({image_id for image_ids in splits.values() for image_id in image_ids})
        for split, image_ids in splits.items():
            for image_id in image_ids:
                for text in ("one", "two"):
                    number = len(references)
                    references.append(
                        {
                            "ref_id": number,
                            "ann_id": image_id,
                            "image_id": image_id,
                            "category_id": 1,
                            "split": split,
                            "sentences": [{"sent_id": number, "sent": f"{text} of {file.parent.name}"}],
                        }
                    )
        file.write_bytes(pickle.dumps(references))
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in ids]
        if "+" in name:  # the same file names in another notation
            for image in images:
                image["file_name"] = "./" + image["file_name"]
        annotations = [{"id": i, "image_id": i, "segmentation": [[1, 1, 6, 1, 6, 6]]} for i in ids]
        content = {"images": images, "annotations": annotations}
        (file.parent / "instances.json").write_text(json.dumps(content))
        for i in ids:
            Image.new("RGB", (8, 8)).save(tmp_path / f"images/train2014/{i}.jpg")
    return tmp_path


def _images(rows):
    return [(row["dataset"], row["image_id"]) for row in rows.remove_columns("image")][::2]


def test_leaking_images_are_dropped_and_counted(root, caplog):
    with caplog.at_level(logging.INFO):
        rows = load_mixed(root)
    assert _images(rows) == [
        ("refcoco", 2),
        ("refcoco", 5),
        ("refcoco+", 2),
        ("refcoco+", 5),
        ("refcocog", 5),
        ("refcocog", 10),
    ]
    assert rows["sentences"][:2] == [["one of refcoco"], ["two of refcoco"]]
    assert rows[0]["image"].size == (8, 8)
    message = rows.info.description
    assert "\n" not in message
    assert "6 of 9 images, with 12 of 24 references," in message
    assert "are excluded (leak=drop)" in message
    assert message in caplog.messages
    assert rows.shuffle(seed=0).select([0]).info.description == message  # kept by operations on the rows


def test_keep_trains_on_all_images_and_reports_how_many_leak(root):
    rows = load_mixed(root, leak="keep")
    assert _images(rows) == [(name.split("/")[0], image) for name, splits in SETS.items() for image in splits["train"]]
    assert "12 of 24 references" in rows.info.description
    assert "are trained on (leak=keep)" in rows.info.description


def test_no_training_image_is_in_any_other_split(root):
    trained = {image for _, image in _images(load_mixed(root))}
    for split in ("val", "testA", "testB", "test"):
        assert not trained & {image for _, image in _images(load_mixed(root, split))}


def test_an_empty_training_set_is_an_error(root):
    for name in SETS:
        references = pickle.loads((root / name).read_bytes())
        for reference in references[::2]:
            reference["split"] = "test"
        (root / name).write_bytes(pickle.dumps(references))
    with pytest.raises(ValueError, match="no training image remains; pass leak='keep'"):
        load_mixed(root)
    assert len(load_mixed(root, leak="keep")) == 12


def test_other_splits_combine_the_datasets_that_have_them(root):
    assert _images(load_mixed(root, "val")) == [("refcoco", 4), ("refcoco+", 6), ("refcocog", 3)]
    assert _images(load_mixed(root, "testB")) == [("refcoco", 9), ("refcoco+", 8)]
    assert _images(load_mixed(root, "test")) == [("refcocog", 11)]
    with pytest.raises(ValueError, match=r"no split 'testC', .*: refcoco has testA, testB, train, val; refcoco\+ has"):
        load_mixed(root, "testC")


def test_missing_datasets_are_named(root):
    (root / "refcocog/refs(umd).p").rename(root / "refcocog/refs(google).p")
    with pytest.raises(FileNotFoundError, match=r"add the missing refcocog/refs\(umd\).p") as caught:
        load_mixed(root)
    assert str(root) in str(caught.value)
    with pytest.raises(ValueError, match="expected leak='drop' or leak='keep', got leak='maybe'"):
        load_mixed(root, leak="maybe")


def test_bad_rows_of_all_three_datasets_are_collected(root):
    for name in SETS:
        file = (root / name).parent / "instances.json"
        content = json.loads(file.read_text())
        next(a for a in content["annotations"] if a["id"] == 5)["segmentation"] = []
        file.write_text(json.dumps(content))
    bad_rows = BadRows()
    rows = load_mixed(root, bad_rows=bad_rows)
    assert 5 not in rows["image_id"][:]
    assert bad_rows.counts() == {"mask_empty": 6}
    assert [name for name in ("refcoco/", "refcoco+/", "refcocog/") if any(name in str(e) for e in bad_rows)] == [
        "refcoco/",
        "refcoco+/",
        "refcocog/",
    ]
    with pytest.raises(BadRowError):
        load_mixed(root)
