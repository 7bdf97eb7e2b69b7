"""Single CSV, TSV, JSON Lines and parquet files with a column mapping."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detris_peft.data import FEATURES, BadRows, DataSource, decode_row
from detris_peft.data.errors import BadRowError, collect_notices
from detris_peft.data.readers import find_reader
from detris_peft.data.readers.column_mapping import ColumnMapping, example_mapping

SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[1:4, 2:6] = 1
OUTLINE = [[2, 1], [6, 1], [6, 4], [2, 4]]
COLUMNS = "image=img,sentences=caption,mask=polygon"
HEADER = "img,caption,polygon\n"
LINE = 'a.png,the square,"[[2,1],[6,1],[6,4],[2,4]]"\n'


def write(folder, content, name="labels.csv", columns=COLUMNS, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    Image.fromarray(SQUARE * 255).save(folder / "m.png")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return DataSource(str(folder / name), columns=columns)


def sentences(source, split="train"):
    return source.load(split)["sentences"][:]


def test_each_line_is_one_reference(tmp_path):
    """Also if several lines describe one object."""
    source = write(tmp_path / "set", HEADER + LINE + LINE.replace("the square", "it") + '\na.png,"one, two",m.png\n')
    assert find_reader(source).name == "table"
    assert source.splits() == ["train"]
    rows = source.load("train")
    assert rows.features == FEATURES
    assert rows["sentences"] == [["the square"], ["it"], ["one, two"]]
    assert (rows["ref_id"], len(set(rows["image_id"]))) == ([0, 1, 2], 1)
    assert (set(rows["dataset"]), set(rows["file_name"])) == ({"labels"}, {"a.png"})
    for row in rows:
        np.testing.assert_array_equal(decode_row(row)[1], SQUARE)


ENCODINGS = {
    "UTF-8": ("utf-8", []),
    "byte order mark": ("utf-8-sig", []),
    "UTF-16": ("utf-16", []),
    "Windows-1252": ("cp1252", ["encoding"]),
}


@pytest.mark.parametrize(("encoding", "kinds"), ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators_of_spreadsheets(tmp_path, encoding, kinds, separator):
    cells = (("img", "caption", "polygon"), ("a.png", "die größte Blüte “rot”", "[2,1,6,1,6,4,2,4]"))
    content = "\r\n".join(separator.join(f'"{cell}"' for cell in row) for row in cells)
    source = write(tmp_path, content, encoding=encoding)
    with collect_notices() as notices:
        assert sentences(source) == [["die größte Blüte “rot”"]]
    assert [kind for kind, _ in notices] == kinds


@pytest.mark.parametrize(
    "data",
    ["img,caption,polygon\na.png,синяя чашка,m.png\n".encode("cp1251"), (HEADER + LINE).encode("utf-16-le"), b"\x81"],
    ids=["cp1251", "UTF-16 without a mark", "undefined byte"],
)
def test_other_encodings_are_named(tmp_path, data):
    with pytest.raises(ValueError, match=r"labels\.csv: expected text in UTF-8, got another encoding; save it as"):
        write(tmp_path, data).load("train", BadRows())


def test_excel_may_declare_the_separator(tmp_path):
    source = write(tmp_path, "sep=|\nimg|caption|polygon\na.png|a, b; c|m.png\na.png||m.png\n")
    with pytest.raises(BadRowError, match="line 4: 'caption': expected a sentence"):
        source.load("train")
    assert source.load("train", BadRows())["sentences"] == [["a, b; c"]]


def test_a_tsv_file_is_separated_by_tabs(tmp_path):
    source = write(tmp_path, "img\tcaption\tpolygon\na.png\tone, two\t2,1,6,1,6,4,2,4\n", "labels.tsv")
    assert sentences(source) == [["one, two"]]


MASKS = ["[2,1,6,1,6,4,2,4]", "[[[2,1],[6,1],[6,4],[2,4]]]", "2 1 6 1 6 4 2 4", "2.0,1;6,1;6,4;2,4", "m.png"]
MASKS.append('{"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]}')


@pytest.mark.parametrize("mask", MASKS)
def test_forms_of_masks(tmp_path, mask):
    quoted = '"' + mask.replace('"', '""') + '"'
    (row,) = write(tmp_path, f"{HEADER}a.png,it,{quoted}\n").load("train")
    np.testing.assert_array_equal(decode_row(row)[1], SQUARE)


def test_boxes_and_flags_are_read_from_text(tmp_path):
    content = 'img,caption,bbox,none\na.png,it,"2, 1, 4, 3",0\na.png,nothing,,TRUE\na.png,x,"1 1 2 2",maybe\n'
    source = write(tmp_path, content, columns="image=img,sentences=caption,box=bbox,no_target=none")
    with pytest.raises(BadRowError, match="line 4: 'none': expected true or false, got 'maybe'"):
        source.load("train")
    rows = source.load("train", BadRows())
    assert rows["no_target"] == [False, True]
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)


def test_a_cell_may_hold_a_json_list_of_sentences(tmp_path):
    source = write(tmp_path, HEADER + 'a.png,"[""one"", ""two""]",m.png\na.png,[sic] the cup,m.png\n')
    assert sentences(source) == [["one", "two"], ["[sic] the cup"]]
    source = write(tmp_path, HEADER + "a.png,\"['one', 'two']\",m.png\n")
    with pytest.raises(BadRowError, match=r"line 2: 'caption': .* a JSON list of sentences .* json\.dumps"):
        source.load("train")


def test_text_is_not_taken_for_a_missing_value_or_a_number(tmp_path):
    """As pandas would: "NA" and "null" are words, and the name of a file may be a number."""
    Image.new("RGB", (8, 6)).save(tmp_path / "0007.png")
    source = write(tmp_path, HEADER + "0007.png,NA,m.png\n0007.png,null,m.png\n0007.png,3,m.png\n")
    assert sentences(source) == [["NA"], ["null"], ["3"]]


def test_a_column_may_name_the_split(tmp_path):
    source = write(tmp_path, "img,caption,polygon,part\na.png,one,m.png,train\na.png,two,m.png,validation\n")
    source.columns += ",split=part"
    assert source.splits() == ["train", "val"]
    assert sentences(source, "val") == [["two"]]
    with pytest.raises(ValueError, match="no split 'test', expected one of train, val"):
        source.load("test")


def test_a_file_per_split(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"{HEADER}a.png,{split},m.png\n", f"{split}.csv")
    source = DataSource(str(tmp_path / "{split}.csv"), columns=COLUMNS)
    assert source.splits() == ["train", "val"]
    assert sentences(source, "val") == [["val"]]
    with pytest.raises(ValueError, match="no split 'test', expected one of train, val"):
        source.load("test")
    with pytest.raises(ValueError, match="no split 'val', expected one of train; `detris data split` makes splits"):
        DataSource(str(tmp_path / "train.csv"), columns=COLUMNS).load("val")


def test_json_lines_keep_their_types(tmp_path):
    lines = [
        {"img": "a.png", "caption": ["one", "two"], "polygon": OUTLINE, "id": 7},
        {"img": "a.png", "caption": "three", "polygon": "m.png", "id": "8"},
        {"img": "a.png", "caption": [{"sent": "four"}], "polygon": {"size": [6, 8], "counts": [13, 3, 32]}},
    ]
    source = write(tmp_path, "\n".join(map(json.dumps, lines)), "labels.jsonl", f"{COLUMNS},ref_id=id")
    rows = source.load("train")
    assert rows["sentences"] == [["one", "two"], ["three"], ["four"]]
    assert rows["ref_id"] == [7, 8, 2]
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)


def test_images_and_masks_may_be_in_the_image_folder(tmp_path):
    source = write(tmp_path / "photos", HEADER + "a.png,it,m.png\n", "unused.csv")
    (tmp_path / "labels.csv").write_text(HEADER + "a.png,it,m.png\n")
    source = DataSource(str(tmp_path / "labels.csv"), columns=COLUMNS, image_folder=str(tmp_path / "photos"))
    np.testing.assert_array_equal(decode_row(source.load("train")[0])[1], SQUARE)
    source.image_folder = None
    with pytest.raises(BadRowError, match=r"line 2: 'img': .*a\.png is missing"):
        source.load("train")


def test_columns_named_as_in_a_metadata_jsonl_need_no_mapping(tmp_path):
    source = write(tmp_path, "file_name,sentence,mask,split\na.png,it,m.png,val\n", columns=None)
    assert source.splits() == ["val"]
    assert sentences(source, "val") == [["it"]]


def test_without_columns_the_error_shows_an_example(tmp_path):
    source = write(tmp_path, HEADER + LINE, columns=None)
    with pytest.raises(
        ValueError, match=r'columns img, caption, polygon are, got none; .*"image=img,sentences=caption'
    ):
        source.splits()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id", "photo_path", "rle", "query"], "image=photo_path,sentences=query,mask=rle"),
        (["Image ID", "bbox", "Sentence"], "image=Image ID,sentences=Sentence,box=bbox"),
        (["image_mask", "image", "text"], "image=image,sentences=text,mask=image_mask"),
        (["a", "b"], "image=...,sentences=...,mask=..."),
    ],
)
def test_the_example_uses_the_columns_found(columns, expected):
    assert example_mapping(columns) == expected
    assert ColumnMapping.parse(expected)


BAD_ROWS = {
    "cells": ("a.png,one,two,m.png\n", "line 2: expected 3 cells separated by ',', got 4; put cells"),
    "few cells": ("a.png\n", "line 2: expected 3 cells separated by ',', got 1"),
    "no image": (",it,m.png\n", "line 2: 'img': expected an image, got none"),
    "missing": ("b.png,it,m.png\n", r"line 2: 'img': .*b\.png is missing"),
    "URL": ("https://host/a.png,it,m.png\n", "line 2: 'img': .* got the URL"),
    "no mask": ("a.png,it,\n", "line 2: 'polygon': expected a mask, got nothing"),
    "mask file": ("a.png,it,n.png\n", r"line 2: 'polygon': .*n\.png: the mask is missing"),
    "outside": ('a.png,it,"20 1 30 1 30 5"\n', "line 2: 'polygon': the mask is entirely outside"),
    "odd": ('a.png,it,"2 1 6 1 6"\n', "line 2: 'polygon': expected a polygon .* even number"),
    "JSON": ('a.png,it,"[2, 1"\n', "line 2: 'polygon': .*expected JSON"),
    "no sentence": ("a.png, ,m.png\n", "line 2: 'caption': expected a sentence"),
}


@pytest.mark.parametrize(("line", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_an_invalid_line_is_named_or_skipped(tmp_path, line, message):
    source = write(tmp_path, HEADER + line + LINE)
    with pytest.raises(BadRowError, match=rf"labels\.csv {message}"):
        source.load("train")
    bad_rows = BadRows()
    assert source.load("train", bad_rows)["sentences"] == [["the square"]]
    assert len(bad_rows) == 1


def test_lines_are_counted_as_in_an_editor(tmp_path):
    source = write(tmp_path, f'{HEADER}a.png,"two\nlines",m.png\n\nb.png,it,m.png\n')
    with pytest.raises(BadRowError, match=r"labels\.csv line 5: 'img'"):
        source.load("train")


@pytest.mark.parametrize("line", ["{", "[1]", '"text"'])
def test_an_invalid_json_line_is_named_or_skipped(tmp_path, line):
    good = json.dumps({"img": "a.png", "caption": "it", "polygon": "m.png"})
    source = write(tmp_path, f"{line}\n{good}\n", "labels.jsonl")
    with pytest.raises(BadRowError, match=r"labels\.jsonl line 1: expected .*JSON.*; fix the line"):
        source.load("train")
    bad_rows = BadRows()
    assert source.load("train", bad_rows)["sentences"] == [["it"]]
    assert len(bad_rows) == 1


FILES = {
    "empty": ("", "expected a first line with a different name for each column, got none"),
    "header only": (HEADER, "expected at least one row, got none"),
    "column twice": ("a,b,a\n1,2,3\n", ".* a different name for each column, got a, b, a"),
    "unknown column": (
        "img,text,polygon\na.png,it,m.png\n",
        "expected the column 'caption' for 'sentences', got img",
    ),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"labels\.csv: {message}"):
        write(tmp_path, content).load("train")


def test_the_metadata_file_of_a_folder_is_read_through_the_folder(tmp_path):
    source = write(tmp_path, '{"file_name": "a.png"}\n', "metadata.jsonl", None)
    with pytest.raises(ValueError, match=rf"expected the folder of metadata\.jsonl, got the file; pass {tmp_path}"):
        source.load("train")


def test_repeated_ids_are_named_by_their_lines(tmp_path):
    source = write(tmp_path, "img,caption,polygon,id\n" + "a.png,it,m.png,5\n" * 2, columns=f"{COLUMNS},ref_id=id")
    with pytest.raises(BadRowError, match=r"labels\.csv line 3: expected a unique 'id', got 5, used by line 2"):
        source.load("train")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_single_parquet_file_is_read(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "[set]"
    write(folder, "")
    for text in ("old", "new"):  # the cache must follow the file
        table = pa.table({"img": ["a.png"], "caption": [text], "polygon": [json.dumps(OUTLINE)]})
        pq.write_table(table, folder / "labels.parquet")
        pq.write_table(table.rename_columns(["a", "b", "c"]), folder / "other.parquet")
        source = DataSource(str(folder / "labels.parquet"), columns=COLUMNS, streaming=streaming)
        assert find_reader(source).name == "hub"
        assert source.splits() == ["train"]
        (row,) = source.load("train")
        assert (row["sentences"], row["dataset"]) == ([text], "labels")
    with pytest.raises(ValueError, match="no split 'val', expected one of train"):
        source.load("val")
