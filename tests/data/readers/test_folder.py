"""The reader for a folder of images with metadata.jsonl."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError, collect_notices
from detris_peft.data.masks import decode_mask
from detris_peft.data.readers.column_mapping import ColumnMapping
from detris_peft.data.readers.folder import folder_splits, load_folder
from detris_peft.data.readers.hub import load_mapped
from detris_peft.data.sources import DataSource

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
def test_every_mask_format_gives_the_same_mask(folder, mask):
    (folder / "masks").mkdir()
    Image.fromarray(SQUARE * 255).save(folder / "masks" / "m.png")
    write_lines(folder, line(mask=mask))
    rows = load_folder(folder)
    assert rows.features == FEATURES
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_non_zero_pixels_of_a_png_of_any_mode_are_foreground(folder, mode):
    image = Image.fromarray(SQUARE * 3) if mode in ("L", "P") else Image.fromarray(SQUARE * 255).convert(mode)
    if mode == "P":
        image.putpalette([0, 0, 0] + [0, 0, 9] * 255)
    image.save(folder / "m.png")
    write_lines(folder, line(mask="m.png"))
    np.testing.assert_array_equal(decode_mask(load_folder(folder)[0]["mask"]), SQUARE)


def test_every_column_is_read_from_a_line(folder):
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


def test_images_of_split_subfolders_may_have_equal_names(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, "a.png")
        write_lines(tmp_path / split, line(sentence=split))
    assert folder_splits(tmp_path) == ["train", "val"]
    train, val = (load_folder(tmp_path, split)[0] for split in ("train", "val"))
    assert (train["sentences"], val["sentences"]) == (["train"], ["val"])
    assert (train["file_name"], val["file_name"]) == ("train/a.png", "val/a.png")
    assert train["image_id"] != val["image_id"]
    with pytest.raises(ValueError, match="no split 'test', expected one of train, val"):
        load_folder(tmp_path, "test")
    with pytest.raises(ValueError, match="expected split= one of train, val"):
        load_folder(tmp_path)


def test_a_file_without_a_readable_line_is_an_error_that_names_the_line(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"')
    with pytest.raises(ValueError, match=r"metadata\.jsonl line 1: expected a JSON object, got .*; fix the line"):
        folder_splits(folder)


def test_lines_may_have_a_split_field(folder):
    write_lines(folder, line(), line(split="val", sentence="other"))
    assert folder_splits(folder) == ["train", "val"]
    assert load_folder(folder, "val")["sentences"] == [["other"]]


def test_the_folder_is_an_imagefolder_of_datasets(tmp_path, monkeypatch):
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
    """Write a photo that is stored as 8 x 6 pixels with an EXIF rotation to 6 x 8; return its line."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((6, 8, 3), np.uint8)
    stored[:, :4] = 255  # the left half of the file is the upper half of the image
    Image.fromarray(stored).save(folder / "turned.jpg", exif=exif, quality=100)
    mask = np.zeros((8, 6), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask if mask_size == "upright" else mask.T).save(folder / "m.png")
    return line(file_name="turned.jpg", mask="m.png")


def test_masks_refer_to_the_upright_image(folder):
    write_lines(folder, turned(folder, "upright"), line(file_name="turned.jpg", mask=[0, 0, 6, 0, 6, 4, 0, 4]))
    for row in load_folder(folder):
        image, mask = decode_row(row)
        assert image.size == (6, 8)
        np.testing.assert_array_equal(np.asarray(image.convert("L")) > 128, mask != 0)


def test_a_mask_of_the_unrotated_file_is_rejected(folder):
    write_lines(folder, turned(folder, "as stored"))
    with pytest.raises(BadRowError, match="upright"):
        load_folder(folder)


BAD = {
    "no json": ('{"file_name": ', "row_malformed", "line 1: expected a JSON object"),
    "no object": ("[1]", "row_malformed", "line 1: expected a JSON object"),
    "no file_name": (line(file_name=None), "row_malformed", "expected 'file_name', got"),
    "number": (line(file_name=3), "row_malformed", "expected text as 'file_name', got 3"),
    "typo": (
        {"file_name": "a.png", "sentance": "x", "mask": OUTLINE},
        "row_malformed",
        "expected 'sentence.*', got file_name, mask, sentance",
    ),
    "blank": (line(sentence=" "), "row_malformed", "'sentence': expected sentences of non-blank text, got ' '"),
    "none": (
        line(sentences=[]),
        "row_malformed",
        r"'sentences': expected a sentence .*, got \[\]",
    ),
    "no text": (line(sentences=["x", 3]), "row_malformed", "'sentences': expected sentences of text, got 3"),
    "no mask": (line(mask=None), "row_malformed", "expected 'mask', got"),
    "id": (line(ref_id=1.5), "row_malformed", "'ref_id': expected an integer or text as the id, got 1.5"),
    "flag": (line(no_target="yes"), "row_malformed", "'no_target': expected true or false, got 'yes'"),
    "no image": (line(file_name="b.png"), "image_missing", "b.png is missing"),
    "text as image": (line(file_name="metadata.jsonl"), "image_damaged", "expected an image"),
    "no mask file": (line(mask="m.png"), "mask_malformed", "m.png: the mask is missing"),
    "text as mask": (line(mask="metadata.jsonl"), "mask_malformed", "expected an image"),
    "broken json": (line(mask="[1, 2"), "mask_malformed", "'mask': .*expected JSON"),
    "two points": (line(mask=[1, 1, 2, 2]), "mask_empty", "expected a polygon of three points"),
    "odd": (line(mask=[1, 1, 2, 2, 3]), "mask_malformed", "even number"),
    "short RLE": (line(mask={"size": [6, 8], "counts": [1, 2]}), "mask_malformed", "integer run lengths that add up"),
    "other size": (line(mask={"size": [9, 8], "counts": [72]}), "mask_malformed", r"\[9, 8\]"),
    "nothing": (line(mask={"size": [6, 8], "counts": [48]}), "mask_empty", "the mask is empty"),
    "fractions": (line(mask=[0.1, 0.1, 0.3, 0.1, 0.3, 0.4]), "mask_empty", "fractions"),
    "outside": (line(mask=[20, 1, 30, 1, 30, 5]), "mask_out_of_frame", "entirely outside the image"),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_file_and_line_or_skipped(folder, content, kind, message):
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


def test_jpeg_masks_truncated_masks_and_repeated_ids_are_rejected(folder):
    Image.fromarray(SQUARE * 255).save(folder / "m.jpg")
    Image.fromarray(SQUARE * 255).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:60])
    write_lines(folder, line(mask="m.jpg"), line(mask="truncated.png"), line(ref_id=7), line(ref_id=7))
    bad_rows = BadRows()
    assert len(load_folder(folder, bad_rows=bad_rows)) == 1
    assert ["PNG" in str(bad_rows[0]), "truncated.png" in str(bad_rows[1])] == [True, True]
    assert bad_rows.counts() == {"mask_malformed": 2, "duplicate_id": 1}


def test_errors_of_the_folder_are_raised_even_with_bad_rows(folder):
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        load_folder(folder, bad_rows=BadRows())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_folder(folder / "nowhere")
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="expected UTF-8 text"):
        load_folder(folder, bad_rows=BadRows())


def test_a_null_split_is_the_default(folder):
    write_lines(folder, line(split=None), line(split="val"))
    assert folder_splits(folder) == ["train", "val"]
    assert len(load_folder(folder, "train")) == 1


def test_a_split_that_is_no_text_is_rejected(folder):
    write_lines(folder, line(split=3), line())
    with pytest.raises(BadRowError, match="line 1: expected text as 'split', got 3"):
        load_folder(folder, "train")
    assert folder_splits(folder) == ["train"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read(folder, name, indent):
    (folder / name).write_text(json.dumps([line(), line(sentence="it")], indent=indent))
    assert load_folder(folder)["sentences"] == [["the square"], ["it"]]
    assert DataSource(str(folder)).splits() == ["train"]


def test_a_table_is_refused_unless_its_columns_are_named(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    (folder / "train").mkdir()
    (folder / "a.png").rename(folder / "train" / "a.png")
    (folder / "train" / "metadata.csv").write_text('file_name,text,polygon\na.png,it,"[2,1,6,1,6,4,2,4]"\n')
    with pytest.raises(ValueError, match=r"metadata\.csv: expected metadata\.jsonl, got CSV; write one JSON object"):
        DataSource(str(folder)).load("train")
    rows = DataSource(str(folder), columns="sentences=text,mask=polygon").load("train")
    assert rows["sentences"] == [["it"]]


def test_backslashes_separate_folders(folder):
    write_images(folder / "photos", "b.png")
    Image.fromarray(SQUARE * 255).save(folder / "photos" / "m.png")
    write_lines(folder, line(file_name="photos\\b.png", mask="photos\\m.png"))
    np.testing.assert_array_equal(decode_row(load_folder(folder)[0])[1], SQUARE)


def test_files_outside_of_the_folder_are_noticed(tmp_path):
    folder = tmp_path / "set"
    write_images(folder / "train", "a.png")
    write_images(tmp_path, "b.png")
    Image.fromarray(SQUARE * 255).save(tmp_path / "m.png")
    (folder / "train" / "link.png").symlink_to(tmp_path / "b.png")
    (folder / "linked").symlink_to(tmp_path)
    outside = ["../../b.png", str(tmp_path / "b.png"), "link.png", "../linked/b.png"]
    write_lines(folder / "train", *(line(file_name=name) for name in outside), line(mask="../../m.png"), line())
    with collect_notices() as notices:
        assert len(load_folder(folder)) == 6
    assert [kind for kind, _ in notices] == ["file_outside"] * 5
    (tmp_path / "link to set").symlink_to(folder)
    write_lines(folder / "train", line())
    with collect_notices() as notices:
        load_folder(tmp_path / "link to set")
    assert not notices
