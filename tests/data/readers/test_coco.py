"""The reader for COCO JSON whose annotations have sentences."""

import json

import numpy as np
import pytest
from PIL import Image

from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows
from detris_peft.data.readers.coco import coco_splits, load_coco
from detris_peft.data.sources import DataSource

OUTLINE = [2, 1, 6, 1, 6, 4, 2, 4]


def image_entry(**changes):
    return {"id": 1, "file_name": "a.png", "height": 6, "width": 8} | changes


def annotation(**changes):
    return {"id": 7, "image_id": 1, "segmentation": [OUTLINE], "sentences": ["the square"], "category_id": 2} | changes


def write(file, *annotations, images=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(file.parent / "a.png")
    content = {"images": images or [image_entry()], "annotations": list(annotations), "categories": []}
    file.write_text(json.dumps(content))
    return file


def test_each_annotation_with_sentences_is_one_row(tmp_path):
    file = write(
        tmp_path / "flowers.json",
        annotation(sentences=["the square", "das Viereck"]),
        annotation(id=8, sentences=[{"sent": "it", "raw": "It!"}]),
        annotation(id=9, sentences=None, sentence="one", segmentation={"size": [6, 8], "counts": [13, 3, 32]}),
        annotation(id=10, sentences=None),
        annotation(id=11, sentences=["nothing"], segmentation=[], no_target=True),
    )
    rows = load_coco(file, split="train")
    assert rows.features == FEATURES
    assert rows["sentences"] == [["the square", "das Viereck"], ["it"], ["one"], ["nothing"]]
    assert (rows["ref_id"], rows["ann_id"], rows["image_id"]) == ([7, 8, 9, 11], [7, 8, 9, -1], [1] * 4)
    assert (set(rows["category_id"]), set(rows["dataset"]), set(rows["split"])) == ({2}, {"flowers"}, {"train"})
    assert [int(decode_row(row)[1].sum()) for row in rows] == [12, 12, 3, 0]
    assert rows["no_target"] == [False, False, False, True]
    assert load_coco(file).to_dict() == rows.to_dict()


def test_image_folder_and_image_sizes_are_optional(tmp_path):
    file = write(tmp_path / "flowers.json", annotation(), images=[{"id": 1, "file_name": "b.png"}])
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "images" / "b.png")
    assert decode_row(load_coco(file, image_folder=tmp_path / "images")[0])[1].sum() == 12


def test_one_file_per_split(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "annotations.json", annotation(sentences=[split]))
    file = tmp_path / "{split}" / "annotations.json"
    assert coco_splits(file) == ["train", "val"]
    train, val = (load_coco(file, split=split)[0] for split in ("train", "val"))
    assert (train["sentences"], train["split"], train["file_name"]) == (["train"], "train", "train/a.png")
    # Both files number their images from 1, but the images differ.
    assert train["image_id"] != val["image_id"]
    assert train["dataset"] == tmp_path.name
    with pytest.raises(ValueError, match="no split 'test', expected one of train, val"):
        load_coco(file, split="test")
    with pytest.raises(ValueError, match="expected a split, got None"):
        load_coco(file)


def test_an_image_in_two_splits_has_one_id(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", annotation())
    ids = [load_coco(tmp_path / "{split}.json", split=split)["image_id"] for split in ("train", "val")]
    assert ids[0] == ids[1]


def test_images_may_have_a_split_field(tmp_path):
    images = [image_entry(split="train"), image_entry(id=2, split="val")]
    file = write(tmp_path / "f.json", annotation(), annotation(id=8, image_id=2), images=images)
    assert coco_splits(file) == ["train", "val"]
    assert load_coco(file, split="val")["ref_id"] == [8]


def test_a_file_without_splits_is_train_only(tmp_path):
    file = write(tmp_path / "f.json", annotation())
    assert coco_splits(file) == ["train"]
    with pytest.raises(ValueError, match=r"no split 'val', expected one of train"):
        load_coco(file, split="val")


BAD = {
    "image": (annotation(image_id=5), "row_malformed", "expected an 'image_id' among 'images', got 5"),
    "unhashable": (annotation(image_id=[1]), "row_malformed", "expected an 'image_id' among 'images'"),
    "id": (annotation(id=None), "row_malformed", "expected an 'id', got nothing"),
    "sentence": (
        annotation(sentences=["a", ""]),
        "row_malformed",
        "'sentences': expected .* text, got ''",
    ),
    "mask": (annotation(segmentation=[]), "mask_empty", "'segmentation'"),
    "no mask": (annotation(segmentation=None), "mask_malformed", "'segmentation'"),
    "outside": (annotation(segmentation=[[20, 1, 30, 1, 30, 5]]), "mask_out_of_frame", "entirely outside the image"),
    "twice": (annotation(id=70), "duplicate_id", "expected a unique 'id'"),
    "file": (annotation(image_id=2), "image_missing", "b.png is missing"),
    "nameless": (annotation(image_id=3), "row_malformed", "expected text as 'file_name' of image 3"),
    "size": (
        annotation(image_id=4),
        "mask_malformed",
        "expected an image of 6x8 pixels as in f.json, got .* of 8x6 pixels",
    ),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_annotation_is_named_with_file_and_id_or_skipped(tmp_path, content, kind, message):
    images = [image_entry(), image_entry(id=2, file_name="b.png"), {"id": 3}, image_entry(id=4, height=8, width=6)]
    file = write(tmp_path / "f.json", annotation(id=70), content, images=images)
    with pytest.raises(BadRowError, match=message) as caught:
        load_coco(file)
    assert caught.value.kind == kind
    assert f"{file}: annotation {content['id'] or 'nothing'}" in str(caught.value)
    bad_rows = BadRows()
    assert load_coco(file, bad_rows=bad_rows)["ref_id"] == [70]
    assert bad_rows.counts() == {kind: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected COCO JSON"),
        ('{"images": [{"file_name": "a"}], "annotations": []}', "expected COCO JSON"),
        ('{"images": [], "annotations": [{"id": 1}]}', "expected annotations with 'sentences'"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, text, message):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_coco(tmp_path / "f.json", bad_rows=BadRows())
    with pytest.raises(FileNotFoundError):
        load_coco(tmp_path / "g.json")


def test_the_size_of_an_image_follows_its_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write(
        tmp_path / "f.json",
        annotation(segmentation=[[0, 0, 6, 0, 6, 4, 0, 4]]),
        images=[image_entry(file_name="t.jpg")],
    )
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "t.jpg", exif=exif)
    with pytest.raises(BadRowError, match="EXIF"):
        load_coco(file)
    content = json.loads(file.read_text())
    content["images"][0] |= {"height": 8, "width": 6}
    file.write_text(json.dumps(content))
    image, mask = decode_row(load_coco(file)[0])
    assert (image.height, image.width) == mask.shape == (8, 6)


def test_two_images_of_one_id_are_named(tmp_path):
    images = [image_entry(), image_entry(file_name="b.png")]
    file = write(tmp_path / "f.json", annotation(), images=images)
    with pytest.raises(BadRowError, match=r"one image with the id 1 in 'images', got 'a\.png' and 'b\.png'") as caught:
        load_coco(file)
    assert caught.value.kind == "duplicate_id"
    bad_rows = BadRows()
    assert len(load_coco(file, bad_rows=bad_rows)) == 0
    assert bad_rows.counts() == {"duplicate_id": 1}


def test_an_image_that_is_listed_twice_is_no_error(tmp_path):
    file = write(tmp_path / "f.json", annotation(), images=[image_entry(), image_entry()])
    assert len(load_coco(file)) == 1


def test_two_annotations_of_one_id_are_named(tmp_path):
    file = write(tmp_path / "f.json", annotation(sentences=["one"]), annotation(sentences=["two"]))
    with pytest.raises(BadRowError, match=r"two objects have \('one' and 'two'\)"):
        load_coco(file)


@pytest.mark.parametrize(("image_id", "reference"), [("1", 1), (1, "1"), (1.0, 1), (1, 1.0), ("1", 1.0)])
def test_ids_as_text_and_as_floats_match(tmp_path, image_id, reference):
    content = annotation(image_id=reference, id=float(annotation()["id"]))
    file = write(tmp_path / "f.json", content, images=[image_entry(id=image_id)])
    row = load_coco(file)[0]
    assert (row["image_id"], row["ref_id"]) == (1, annotation()["id"])


def test_sizes_are_numbers_or_missing(tmp_path):
    file = write(tmp_path / "f.json", annotation(), images=[image_entry(height=None, width=None)])
    assert len(load_coco(file)) == 1
    file = write(tmp_path / "g.json", annotation(), images=[image_entry(height="6")])
    with pytest.raises(BadRowError, match="expected a number as 'height' of image 1, got '6'"):
        load_coco(file)


def test_backslashes_separate_folders(tmp_path):
    file = write(tmp_path / "f.json", annotation(), images=[image_entry(file_name="photos\\a.png")])
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "photos" / "a.png")
    assert load_coco(file)[0]["image"].size == (8, 6)


def test_the_image_folder_is_found_from_the_working_directory(tmp_path, monkeypatch):
    file = write(tmp_path / "set" / "f.json", annotation())
    (tmp_path / "set" / "photos").mkdir()
    (tmp_path / "set" / "a.png").rename(tmp_path / "set" / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    for data_root, name in (("elsewhere", "set/photos"), ("set", "photos"), ("set", "set/photos")):
        assert len(DataSource(str(file), data_root, image_folder=name).load("train")) == 1
    with pytest.raises(FileNotFoundError, match=r"data/none: the image folder is missing, and so is none; fix"):
        DataSource(str(file), image_folder="none").load("train")
