"""A folder of images with metadata.jsonl."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError
from detris_peft.data.masks import decode_mask
from detris_peft.data.readers.column_mapping import ColumnMapping
from detris_peft.data.readers.folder import folder_splits, load_folder
from detris_peft.data.readers.hub import load_mapped

SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[1:4, 2:6] = 1
COLUMNS = ColumnMapping(sentences="sentence", mask="mask")
OUTLINE = [2, 1, 6, 1, 6, 4, 2, 4]


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6), "navy").save(folder / name)


def write_lines(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, "a.png")
    return tmp_path


def line(**changes):
    return {"file_name": "a.png", "sentence": "the square", "mask": OUTLINE} | changes


@pytest.mark.parametrize(
    "mask",
    [
        "masks/m.png",
        OUTLINE,
        [OUTLINE],
        [[2, 1], [6, 1], [6, 4], [2, 4]],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],
        {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]},
        json.dumps(OUTLINE),
    ],
    ids=["png", "flat", "polygon", "points", "two", "rle", "text"],
)
def test_every_form_of_a_mask_gives_the_same_pixels(folder, mask):
    (folder / "masks").mkdir()
    Image.fromarray(SQUARE * 255).save(folder / "masks" / "m.png")
    write_lines(folder, line(mask=mask))
    rows = load_folder(folder)
    assert rows.features == FEATURES
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_png_of_any_mode_is_read_as_black_or_not(folder, mode):
    image = Image.fromarray(SQUARE * 3) if mode in ("L", "P") else Image.fromarray(SQUARE * 255).convert(mode)
    if mode == "P":
        image.putpalette([0, 0, 0] * 256)  # the index counts, not the color
    image.save(folder / "m.png")
    write_lines(folder, line(mask="m.png"))
    np.testing.assert_array_equal(decode_mask(load_folder(folder)[0]["mask"]), SQUARE)


def test_a_line_gives_every_column(folder):
    write_lines(
        folder,
        "",
        line(sentences=["the  square", "das Viereck"], sentence=None, image_id="x", category_id=3, ann_id=9),
        line(sentence="a unicorn", mask=None, no_target=True, ref_id=40),
    )
    first, second = load_folder(folder, "train")
    assert first["sentences"] == ["the  square", "das Viereck"]
    assert (first["ref_id"], first["ann_id"], first["ann_ids"], first["category_id"]) == (2, 9, [9], 3)
    assert (first["split"], first["dataset"], first["file_name"]) == ("train", folder.name, "a.png")
    assert len(set(first["sent_ids"])) == 2
    assert not first["no_target"]
    assert second["no_target"]
    assert (second["ref_id"], second["ann_id"], second["ann_ids"]) == (40, -1, [])
    assert not decode_mask(second["mask"]).any()
    assert decode_mask(second["mask"]).shape == (6, 8)


def test_splits_are_sub_folders_whose_images_may_share_names(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, "a.png")
        write_lines(tmp_path / split, line(sentence=split))
    assert folder_splits(tmp_path) == ["train", "val"]
    train, val = (load_folder(tmp_path, split)[0] for split in ("train", "val"))
    assert (train["sentences"], val["sentences"]) == (["train"], ["val"])
    assert (train["file_name"], val["file_name"]) == ("train/a.png", "val/a.png")
    assert train["image_id"] != val["image_id"]
    with pytest.raises(ValueError, match="no split 'test': there are train, val"):
        load_folder(tmp_path, "test")
    with pytest.raises(ValueError, match="pass split=: there are train, val"):
        load_folder(tmp_path)


def test_lines_may_name_their_split(folder):
    write_lines(folder, line(), line(split="val", sentence="other"))
    assert folder_splits(folder) == ["train", "val"]
    assert load_folder(folder, "val")["sentences"] == [["other"]]


def test_datasets_reads_the_folder_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "val"):
        write_images(tmp_path / "set" / split, "a.png")
        Image.fromarray(SQUARE * 255).save(tmp_path / "set" / split / "m.png")
        lines = line(mask_file_name="m.png"), line(mask_file_name="m.png", sentence="it")
        write_lines(tmp_path / "set" / split, *({k: v for k, v in one.items() if k != "mask"} for one in lines))
    ours, theirs = load_folder(tmp_path / "set", "val"), load_mapped(str(tmp_path / "set"), "val", COLUMNS)
    assert ours.features == theirs.features
    for name in ("sentences", "mask", "split", "dataset"):
        assert ours[name] == theirs[name]
    np.testing.assert_array_equal(decode_row(theirs[0])[1], SQUARE)


def turned(folder, mask_size):
    """A photograph that is stored lying (8 wide, 6 high) and stands upright as 6 x 8."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4] = 255  # the left half of the file is the upper half of the image
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif, quality=100)
    mask = np.zeros((8, 6), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask if mask_size == "upright" else mask.T).save(folder / "m.png")
    return line(file_name="turned.jpg", mask="m.png")


def test_a_turned_photograph_and_its_mask_stand_upright(folder):
    write_lines(folder, turned(folder, "upright"), line(file_name="turned.jpg", mask=[0, 0, 6, 0, 6, 4, 0, 4]))
    for row in load_folder(folder):
        image, mask = decode_row(row)
        assert image.size == (6, 8)
        np.testing.assert_array_equal(np.asarray(image.convert("L")) > 128, mask != 0)


def test_a_mask_of_the_lying_file_is_refused_with_the_reason(folder):
    write_lines(folder, turned(folder, "lying"))
    with pytest.raises(BadRowError, match="upright"):
        load_folder(folder)


BAD = {
    "no json": ('{"file_name": ', "row_malformed", "line 1: not readable as JSON"),
    "no object": ("[1]", "row_malformed", "line 1: not readable as JSON"),
    "no file_name": (line(file_name=None), "row_malformed", "'file_name' is missing"),
    "number": (line(file_name=3), "row_malformed", "'file_name' is 3"),
    "typo": (
        {"file_name": "a.png", "sentance": "x", "mask": OUTLINE},
        "row_malformed",
        "the line has file_name, mask, sentance",
    ),
    "blank": (line(sentence=" "), "row_malformed", "'sentence' holds ' '"),
    "none": (line(sentences=[]), "row_malformed", r"'sentences' is \[\]"),
    "no text": (line(sentences=["x", 3]), "row_malformed", "'sentences' holds 3"),
    "no mask": (line(mask=None), "row_malformed", "'mask' is missing"),
    "id": (line(ref_id=1.5), "row_malformed", "'ref_id' is 1.5"),
    "flag": (line(no_target="yes"), "row_malformed", "'no_target' is 'yes'"),
    "no image": (line(file_name="b.png"), "image_missing", "b.png is missing"),
    "text as image": (line(file_name="metadata.jsonl"), "image_damaged", "is no image"),
    "no mask file": (line(mask="m.png"), "mask_malformed", "m.png is missing"),
    "text as mask": (line(mask="metadata.jsonl"), "mask_malformed", "is no image"),
    "broken json": (line(mask="[1, 2"), "mask_malformed", "'mask' is not readable as JSON"),
    "two points": (line(mask=[1, 1, 2, 2]), "mask_empty", "no polygon has three points"),
    "odd": (line(mask=[1, 1, 2, 2, 3]), "mask_malformed", "even number"),
    "short RLE": (line(mask={"size": [6, 8], "counts": [1, 2]}), "mask_malformed", "do not add up"),
    "other size": (line(mask={"size": [9, 8], "counts": [72]}), "mask_malformed", r"\[9, 8\]"),
    "nothing": (line(mask={"size": [6, 8], "counts": [48]}), "mask_empty", "the mask is empty"),
    "fractions": (line(mask=[0.1, 0.1, 0.3, 0.1, 0.3, 0.4]), "mask_empty", "fractions"),
    "beside": (line(mask=[20, 1, 30, 1, 30, 5]), "mask_out_of_frame", "beside the image"),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_file_and_line_or_left_out(folder, content, kind, message):
    write_lines(folder, content, line())
    with pytest.raises(BadRowError, match=message) as caught:
        load_folder(folder)
    assert caught.value.kind == kind
    assert f"{folder / 'metadata.jsonl'} line 1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MissingImageError) == (kind == "image_missing")
    bad_rows = BadRows()
    assert load_folder(folder, "train", bad_rows=bad_rows)["ref_id"] == [2]
    assert bad_rows.counts() == {kind: 1}


def test_masks_that_lie_are_refused(folder):
    Image.fromarray(SQUARE * 255).save(folder / "m.jpg")
    Image.fromarray(SQUARE * 255).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    write_lines(folder, line(mask="m.jpg"), line(mask="cut.png"), line(ref_id=7), line(ref_id=7))
    bad_rows = BadRows()
    assert len(load_folder(folder, bad_rows=bad_rows)) == 1
    assert ["PNG" in str(bad_rows[0]), "cut.png" in str(bad_rows[1])] == [True, True]
    assert bad_rows.counts() == {"mask_malformed": 2, "duplicate_id": 1}


def test_faults_of_the_whole_folder_are_raised_even_where_bad_rows_are_collected(folder):
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        load_folder(folder, bad_rows=BadRows())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_folder(folder / "nowhere")
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_folder(folder, bad_rows=BadRows())
