"""The reader for Ref-YouTube-VOS. Layout: https://github.com/wjn922/ReferFormer/blob/main/docs/data.md"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detris_peft.data import BadRowError, BadRows, DataSource, decode_mask
from detris_peft.data.errors import collect_notices
from detris_peft.data.readers import find_reader
from detris_peft.data.readers.labels.ref_youtube_vos import RefYouTubeVosReader
from tests.helpers.reference import FIXTURES

SET = FIXTURES / "labels" / "ref_youtube_vos"
VIDEO = "003234408d"
EXPRESSIONS = "meta_expressions/train/meta_expressions.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture that a test may change."""
    shutil.copytree(SET, tmp_path / "vos")
    return tmp_path / "vos"


def edit(folder, expression=None, **video):
    """Change fields of the video, and of its first expression."""
    content = json.loads((folder / EXPRESSIONS).read_text())
    content["videos"][VIDEO] |= video
    if expression is not None:
        content["videos"][VIDEO]["expressions"]["0"] = expression
    (folder / EXPRESSIONS).write_text(json.dumps(content))
    return DataSource(str(folder))


def test_an_object_in_a_frame_is_a_row_with_all_its_expressions():
    source = DataSource(str(SET))
    assert source.splits() == ["train"]
    with collect_notices() as notices:
        rows = source.load("train")
    assert rows["file_name"][:] == [f"{VIDEO}/00000.jpg"] * 2 + [f"{VIDEO}/00005.jpg"]
    second = ["a penguin in the back", "the large penguin"]
    assert rows["sentences"][:] == [["a penguin is on the left"], second, second]
    assert len(set(rows["ref_id"])) == 3
    assert len(set(rows["image_id"])) == 2
    for row, number in zip(rows, (1, 2, 2), strict=True):
        indices = np.asarray(Image.open(SET / "train" / "Annotations" / row["file_name"].replace("jpg", "png")))
        assert np.array_equal(decode_mask(row["mask"]), indices == number)
        assert row["image"].size == (40, 30)
    assert [(kind, message.split(": ")[1]) for kind, message in notices] == [
        ("not_visible", "1 of 4 rows are left out, as their objects are not visible in their frames")
    ]


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_masks_of_any_content_and_mode(folder, mode):
    rng = np.random.default_rng(0)
    source = edit(folder, frames=["00000"])
    file = folder / "train" / "Annotations" / VIDEO / "00000.png"
    for highest in (2, 3) if mode != "1" else (2,):
        indices = rng.integers(0, highest, (30, 40), dtype=np.uint8)
        image = Image.fromarray(indices.astype(bool)) if mode == "1" else Image.fromarray(indices)
        if mode == "P":
            image.putpalette([0, 0, 0, 236, 95, 103, 249, 145, 87])
        image.save(file)
        assert Image.open(file).mode == mode
        masks = source.load("train")["mask"][:]
        assert len(masks) == highest - 1
        for number, mask in enumerate(masks, 1):
            assert np.array_equal(decode_mask(mask), indices == number)
    full = Image.fromarray(np.full((30, 40), 1, np.uint8))
    full.save(file)
    assert decode_mask(source.load("train")[0]["mask"]).all()


def test_classes_come_from_meta_json(folder):
    reader, source = RefYouTubeVosReader(), DataSource(str(folder))
    assert reader.load_objects(source, "train", None)["sentences"][:] == [["penguin"]] * 3
    (folder / "train" / "meta.json").unlink()
    assert reader.load_objects(source, "train", None)["sentences"][:] == [["object"]] * 3
    (folder / "train" / "meta.json").write_text(
        json.dumps({"videos": {VIDEO: {"objects": {"1": {"category": 3}, "2": {"category": "bird"}}}}})
    )
    assert len(reader.load(source, "train", None)) == 3  # classes are not needed
    bad_rows = BadRows()
    assert reader.load_objects(source, "train", bad_rows)["sentences"][:] == [["bird"]] * 2
    assert "object 1: expected text as 'category' in meta.json, got 3" in str(bad_rows[0])
    (folder / "train" / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match=r"meta\.json: expected an object 'videos'"):
        source.load("train")


def test_splits_without_public_masks_are_named(folder):
    source = DataSource(str(folder))
    for split in ("val", "test"):
        if split == "test":
            (folder / "meta_expressions" / "valid").rename(folder / "meta_expressions" / "test")
        with pytest.raises(
            ValueError, match=r"expected the masks of the split, got no such folder; the masks of .* not"
        ):
            source.load(split)
    with pytest.raises(ValueError, match="no split 'dev', expected one of train; `detris data split` makes splits"):
        source.load("dev")
    # YouTube-VOS has the first mask of each video in its split valid, but no expression names its object.
    (folder / "test" / "Annotations").mkdir(parents=True)
    assert source.splits() == ["train"]
    with pytest.raises(
        ValueError, match=r"test/meta_expressions\.json: expected 'obj_id' in the expressions, got none"
    ):
        source.load("test")
    shutil.rmtree(folder / "train" / "Annotations")
    with pytest.raises(ValueError, match=r"train/Annotations: expected the masks of the split, got no such folder"):
        source.splits()


def test_ref_davis17_has_a_split_valid(folder):
    (folder / "train").rename(folder / "valid2")
    shutil.rmtree(folder / "valid")
    (folder / "valid2").rename(folder / "valid")
    (folder / EXPRESSIONS).rename(folder / "meta_expressions" / "valid" / "meta_expressions.json")
    source = DataSource(str(folder))
    assert source.splits() == ["val"]
    assert len(source.load("val")) == 3


def test_expressions_next_to_the_frames_are_found(folder):
    (folder / EXPRESSIONS).rename(folder / "train" / "meta_expressions.json")
    shutil.rmtree(folder / "meta_expressions")
    source = DataSource(str(folder))
    assert find_reader(source).name == "ref_youtube_vos"
    assert len(source.load("train")) == 3
    assert not RefYouTubeVosReader().detect(DataSource(str(folder / "train")))


BAD_VIDEOS = {
    "frames": ({"frames": "00000"}, "video '003234408d': expected a list of texts as 'frames', got '00000'"),
    "frame": ({"frames": [5]}, "expected a list of texts as 'frames'"),
    "expressions": ({"expressions": []}, "expected an object 'expressions', got"),
    "expression": ({"expression": "a penguin"}, "expression '0': expected an object with 'exp' and 'obj_id'"),
    "object 0": ({"expression": {"exp": "it", "obj_id": "0"}}, "expected an 'obj_id' from 1 to 255, got '0'"),
    "object true": ({"expression": {"exp": "it", "obj_id": True}}, "expected an 'obj_id' from 1 to 255, got True"),
    "objects": ({"expression": {"exp": "it", "obj_id": [1, 2]}}, r"expected an 'obj_id' from 1 to 255, got \[1, 2\]"),
    "no object": ({"expression": {"exp": "it"}}, "expected an 'obj_id' from 1 to 255, got nothing"),
    "no text": (
        {"expression": {"obj_id": "1"}},
        "expression '0': 'exp': expected sentences of non-blank text, got ''",
    ),
    "blank": ({"expression": {"exp": " ", "obj_id": 1}}, "'exp': expected sentences of non-blank text"),
    "no frame": ({"frames": ["00007"]}, r"Annotations/003234408d/00007\.png: the masks of the frame are missing"),
    "frame twice": ({"frames": ["00000", "00000"]}, "expected a unique 'id'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_VIDEOS.values(), ids=BAD_VIDEOS)
def test_an_invalid_video_is_named(folder, changes, message):
    source = edit(folder, **changes)
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert "\n" not in str(caught.value)
    bad_rows = BadRows()
    rows = source.load("train", bad_rows)
    if "expression" in changes:  # the other object is not affected
        assert (len(rows), len(bad_rows)) == (2, 1)


def test_invalid_masks_are_named(folder):
    source = DataSource(str(folder))
    file = folder / "train" / "Annotations" / VIDEO / "00000.png"
    for mask, message in (
        (
            Image.new("RGB", (40, 30)),
            "expected a palette image whose indices are the objects' numbers, got the mode RGB",
        ),
        (Image.new("L", (30, 40), 1), r"object 1: expected a mask of the image's size .* = \[30, 40\]"),
    ):
        mask.save(file)
        with pytest.raises(BadRowError, match=message) as caught:
            source.load("train")
        assert caught.value.kind == "mask_malformed"
        assert str(file) in str(caught.value)
    file.write_bytes(b"PNG")
    with pytest.raises(BadRowError, match=r"00000\.png: expected an image, got a file that cannot be decoded"):
        source.load("train")


def test_a_missing_frame_is_named(folder):
    (folder / "train" / "JPEGImages" / VIDEO / "00005.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"object 2: .*JPEGImages/003234408d/00005\.jpg is missing"):
        DataSource(str(folder)).load("train")


def test_a_name_that_leads_out_of_the_folder_is_noticed(folder):
    content = json.loads((folder / EXPRESSIONS).read_text())
    content["videos"][f"../../../{folder.name}/train/JPEGImages/{VIDEO}"] = content["videos"].pop(VIDEO)
    (folder / EXPRESSIONS).write_text(json.dumps(content))
    for kind in ("JPEGImages", "Annotations"):  # both names must exist
        for name in ("00000", "00005"):
            suffix = "jpg" if kind == "JPEGImages" else "png"
            target = folder / "train" / "JPEGImages" / VIDEO / f"{name}.{suffix}"
            if not target.exists():
                shutil.copy(folder / "train" / kind / VIDEO / f"{name}.{suffix}", target)
    with collect_notices() as notices:
        assert len(DataSource(str(folder)).load("train")) == 3
    assert sum(kind == "file_outside" and "is not in the folder" in message for kind, message in notices) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"videos": []}', '{"obj_id": 1}'])
def test_a_file_of_another_form_is_named(folder, content):
    (folder / EXPRESSIONS).write_text(content)
    with pytest.raises(ValueError, match=r"meta_expressions\.json: expected"):
        DataSource(str(folder)).load("train")
    (folder / EXPRESSIONS).write_bytes("{}".encode("utf-16"))
    with pytest.raises(ValueError, match="expected a JSON file in UTF-8, got another encoding"):
        DataSource(str(folder)).load("train")
