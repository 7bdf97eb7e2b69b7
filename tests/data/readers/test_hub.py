"""The Hub reader with local files: parquet, imagefolder, JSON lines, and `save_to_disk`, with various columns."""

import io
import json
import pickle
import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from detris_peft.data import FEATURES, decode_row, open_image
from detris_peft.data.errors import BadRowError, BadRows, collect_notices
from detris_peft.data.readers import hub_rows
from detris_peft.data.readers.column_mapping import ColumnMapping, look_up, shipped_mappings
from detris_peft.data.readers.hub import load_mapped, mapped_splits

SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[1:4, 2:6] = 1
OUTLINE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]
RLE = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]}
Image, Value, List = datasets.Image, datasets.Value, lambda kind: [kind]
NUMBER, TEXT = Value("float32"), Value("string")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(array=None, **kwargs):
    file = io.BytesIO()
    Pillow.fromarray(np.zeros((6, 8, 3), np.uint8) if array is None else array).save(file, "PNG", **kwargs)
    return {"bytes": file.getvalue(), "path": None}


def parquet(folder, rows, features, name="train-00000-of-00001"):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    columns = {column: [row[column] for row in rows] for column in features}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.to_parquet(folder / "data" / f"{name}.parquet")
    return str(folder)


def loaded(path, columns, split="train", **options):
    """Load rows from disk and as a stream, and check that they agree."""
    parsed = columns if columns is None or isinstance(columns, ColumnMapping) else ColumnMapping.parse(columns)
    rows = load_mapped(path, split, parsed, **options)
    stream = load_mapped(path, split, parsed, streaming=True, **options)
    assert isinstance(stream, datasets.IterableDataset)
    assert rows.features == stream.features == FEATURES
    streamed = list(stream)
    kept = list(rows.cast_column("image", Image(decode=False)))
    assert streamed == kept
    for row in streamed:
        open_image(row["image"])
    return rows


FORMS = {
    "png": (Image(), png(SQUARE * 255), "mask=target"),
    "flat": (List(NUMBER), OUTLINE, "mask=target"),
    "polygons": (List(List(NUMBER)), [OUTLINE], "mask=target"),
    "points": (List(List(NUMBER)), [[2, 1], [6, 1], [6, 4], [2, 4]], "mask=target"),
    "rle": ({"size": List(Value("int32")), "counts": List(Value("int32"))}, RLE, "mask=target"),
    "text": (TEXT, json.dumps([OUTLINE]), "mask=target"),
    "xywh": (List(NUMBER), [2, 1, 4, 3], "box=target"),
    "xyxy": (List(NUMBER), [2, 1, 6, 4], "box=target,box_format=xyxy"),
    "box in fractions": (List(Value("float64")), [2 / 8, 1 / 6, 4 / 8, 3 / 6], "box=target,units=fractions"),
    "fractions": (
        List(Value("float64")),
        [number / (8, 6)[index % 2] for index, number in enumerate(OUTLINE)],
        "mask=target,units=fractions",
    ),
    "nested": ({"ann": {"seg": List(NUMBER)}}, {"ann": {"seg": OUTLINE}}, "mask=target.ann.seg"),
    "in text": (TEXT, json.dumps({"ann": {"segmentation": [OUTLINE]}}), "mask=target.ann.segmentation"),
}


@pytest.mark.parametrize(("kind", "value", "columns"), FORMS.values(), ids=FORMS)
def test_every_target_format_gives_the_same_mask(tmp_path, kind, value, columns):
    path = parquet(
        tmp_path / "set",
        [{"image": png(), "caption": "the square", "target": value}],
        {"image": Image(), "caption": TEXT, "target": kind},
    )
    row = loaded(path, f"image=image,sentences=caption,{columns}")[0]
    np.testing.assert_array_equal(decode_row(row)[1], SQUARE)
    assert (row["sentences"], row["ref_id"], row["dataset"], row["split"]) == (["the square"], 0, "set", "train")


def test_ids_sentences_and_no_target_follow_the_mapping(tmp_path):
    features = {
        "image": Image(),
        "sents": List({"sent": TEXT, "id": Value("int64")}),
        "seg": List(NUMBER),
        "none": Value("bool"),
        "key": TEXT,
        "image_id": TEXT,
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "name": TEXT,
    }
    sents = [{"sent": "a", "id": 5}, {"sent": "b", "id": 6}]
    rows = [
        {"sents": sents, "seg": OUTLINE, "none": False, "key": "12"},
        {"sents": sents[:1], "seg": None, "none": True, "key": "r7"},
    ]
    common = {"image": png(), "image_id": "p", "kind": 1, "name": "x/y.png"}
    path = parquet(tmp_path / "set", [row | common for row in rows], features)
    first, second = loaded(
        path,
        ColumnMapping(
            sentences="sents.sent",
            mask="seg",
            no_target="none",
            ref_id="key",
            ann_id="key",
            image_id="image_id",
            sent_ids="sents.id",
            category_id="kind",
            file_name="name",
        ),
    )
    assert (first["ref_id"], first["ann_id"], first["ann_ids"], first["sent_ids"]) == (12, 12, [12], [5, 6])
    assert (first["category_id"], first["file_name"]) == (1, "y.png")
    assert first["image_id"] == second["image_id"] > 0
    assert second["no_target"]
    assert (second["ann_id"], second["ann_ids"]) == (-1, [])
    assert not decode_row(second)[1].any()


def test_one_row_per_image_becomes_one_row_per_reference(tmp_path):
    features = {"image": Image(), "refs": List({"captions": List(TEXT), "box": List(NUMBER)})}
    refs = [{"captions": [text], "box": [0, 0, width, 6]} for text, width in (("a", 2), ("b", 4), ("c", 8))]
    rows = [{"image": png(), "refs": refs[:2]}, {"image": png(), "refs": []}, {"image": png(), "refs": refs[2:]}]
    path = parquet(tmp_path / "set", rows, features)
    rows = loaded(path, "rows=refs,sentences=refs.captions,box=refs.box")
    assert rows["sentences"] == [["a"], ["b"], ["c"]]
    assert [int(decode_row(row)[1].sum()) for row in rows] == [12, 24, 48]
    assert len(set(rows["ref_id"])) == 3
    first, second, third = rows["image_id"]
    assert first == second != third


def test_a_column_may_hold_the_split(tmp_path):
    features = {"image": Image(), "sentences": TEXT, "box": List(NUMBER), "set": TEXT}
    rows = [{"image": png(), "sentences": name, "box": [0, 0, 3, 3], "set": name} for name in ("train", "A", "train")]
    path = parquet(tmp_path / "set", rows, features)
    columns = ColumnMapping(box="box", split="set", splits={"testA": "A"})
    assert mapped_splits(path, columns) == ["testA", "train"]
    assert loaded(path, columns, "testA")["sentences"] == [["A"]]
    assert loaded(path, columns)["sentences"] == [["train"], ["train"]]


def simple(folder, count=4, name="train-00000-of-00001", **changes):
    rows = [{"image": png(), "sentences": f"s{index}", "box": [0, 0, 3, 3]} | changes for index in range(count)]
    return parquet(folder, rows, {"image": Image(), "sentences": TEXT, "box": List(NUMBER)}, name)


def test_bad_rows_are_named_or_skipped(tmp_path):
    rows = [{"image": png(), "sentences": f"s{index}", "box": [0, 0, 3, 3]} for index in range(9)]
    rows[1]["image"] = {"bytes": b"not an image", "path": "b.png"}
    rows[2]["sentences"] = " "
    rows[3]["box"] = [0, 0, 0, 3]
    rows[4]["box"] = [20, 0, 3, 3]
    rows[5]["box"] = [1, 2, 3]
    rows[6]["box"] = [4, 3, 8, 6]  # corners in xyxy, read as xywh
    rows[7]["image"] = None
    path = parquet(tmp_path / "set", rows, {"image": Image(), "sentences": TEXT, "box": List(NUMBER)})
    columns = ColumnMapping(box="box")
    with pytest.raises(BadRowError, match=r"set train row 1: 'image': b\.png: expected an image, got") as caught:
        load_mapped(path, "train", columns)
    assert caught.value.kind == "image_damaged"
    with pytest.raises(BadRowError, match="set train row 1: "):
        list(load_mapped(path, "train", columns, streaming=True))
    from_disk, from_stream = BadRows(), BadRows()
    assert load_mapped(path, "train", columns, bad_rows=from_disk)["sentences"] == [["s0"], ["s8"]]
    stream = load_mapped(path, "train", columns, streaming=True, bad_rows=from_stream)
    assert [row["sentences"] for row in stream] == [["s0"], ["s8"]]
    assert list(map(str, from_disk)) == list(map(str, from_stream))
    assert from_disk.counts() == {
        "image_damaged": 1,
        "mask_empty": 1,
        "mask_out_of_frame": 1,
        "mask_malformed": 2,
        "row_malformed": 2,
    }
    assert "xyxy" not in str(from_disk[4])
    assert "format is not xywh" in str(from_disk[5])


def test_repeated_ids_are_found_on_disk_but_not_in_a_stream(tmp_path):
    rows = [{"image": png(), "sentences": "s", "box": [0, 0, 3, 3], "id": number} for number in (4, 5, 4)]
    path = parquet(
        tmp_path / "set", rows, {"image": Image(), "sentences": TEXT, "box": List(NUMBER), "id": Value("int64")}
    )
    columns = ColumnMapping(box="box", ref_id="id")
    with pytest.raises(BadRowError, match="row 2: expected a unique 'id', got 4") as caught:
        load_mapped(path, "train", columns)
    assert caught.value.kind == "duplicate_id"
    assert load_mapped(path, "train", columns, bad_rows=BadRows())["ref_id"] == [4, 5]
    stream = load_mapped(path, "train", columns, streaming=True)
    assert [[row["ref_id"] for row in stream] for _ in range(2)] == [[4, 5, 4]] * 2  # in both epochs


def test_images_are_neither_decoded_nor_copied(tmp_path, monkeypatch):
    noise = random.Random(0)
    image = np.frombuffer(noise.randbytes(300 * 300 * 3), np.uint8).reshape(300, 300, 3)
    rows = [{"image": png(image), "sentences": "s", "box": [0, 0, 3, 3]} for _ in range(40)]  # 270 kB each
    path = parquet(tmp_path / "set", rows, {"image": Image(), "sentences": TEXT, "box": List(NUMBER)})
    load_mapped(path, "train", ColumnMapping(box="box"))  # `datasets` writes its own file once

    def decode(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Pillow.Image, "convert", decode)
    monkeypatch.setattr(Image, "decode_example", decode)
    before = pa.total_allocated_bytes()
    loaded = load_mapped(path, "train", ColumnMapping(box="box"))
    assert pa.total_allocated_bytes() - before < 500_000
    assert len(loaded) == 40
    assert loaded.cache_files
    assert len(pickle.dumps(loaded)) < 500_000  # sent to each worker process


def test_a_stream_reads_only_the_rows_that_are_requested(tmp_path, monkeypatch):
    for shard in range(3):
        path = simple(tmp_path / "set", name=f"train-0000{shard}-of-00003")
    (tmp_path / "set" / "data" / "train-00002-of-00003.parquet").write_bytes(b"PAR1 but truncated")
    read = []
    measure = hub_rows.upright_size
    monkeypatch.setattr(hub_rows, "upright_size", lambda image, where: read.append(where) or measure(image, where))
    stream = load_mapped(path, "train", ColumnMapping(box="box"), streaming=True)
    assert read == []
    rows = iter(stream)
    assert [next(rows)["sentences"] for _ in range(5)] == [["s0"], ["s1"], ["s2"], ["s3"], ["s0"]]
    assert len(read) == 5
    assert stream.num_shards == 3


@pytest.fixture
def converted(tmp_path):
    """Rows as written by `detris data convert`."""
    path = simple(tmp_path / "raw", 3)
    rows = load_mapped(path, "train", ColumnMapping(box="box")).cast_column("image", Image(decode=False))
    return [dict(row) for row in rows]


def plain_features():
    return datasets.Features({**FEATURES, "image": Image()})


@pytest.mark.parametrize("split", ["train", "val", "testA"])
def test_converted_parquet_needs_no_mapping(tmp_path, converted, split):
    path = parquet(tmp_path / "set", converted, plain_features(), f"{split}-00000-of-00001")
    assert loaded(path, None, split)["sentences"] == [["s0"], ["s1"], ["s2"]]
    assert mapped_splits(path) == [split]


@pytest.mark.parametrize("column", ["image", "mask"])
def test_files_outside_of_the_folder_and_the_cache_are_noticed(tmp_path, column):
    """`detris data convert` would otherwise embed any image of the machine."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "set" / "data").mkdir(parents=True)
    for folder, noticed in ((tmp_path, 1), (tmp_path / "cache", 0), (tmp_path / "set", 0)):
        file = folder / "a.png"
        file.write_bytes(png(SQUARE)["bytes"])
        row = {"image": png(), "text": "it", "mask": png(SQUARE), column: {"bytes": None, "path": str(file)}}
        schema = datasets.Features({"image": Image(), "text": Value("string"), "mask": Image()}).arrow_schema
        # `datasets` would embed the file.
        pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "set" / "data" / "train.parquet")
        with collect_notices() as notices:
            load_mapped(str(tmp_path / "set"), "train", ColumnMapping.parse("sentences=text,mask=mask"))
        assert [kind for kind, _ in notices] == ["file_outside"] * noticed


def test_converted_rows_are_checked(tmp_path, converted):
    converted[0]["mask"] = {"size": [6, 8], "counts": "`1"}  # background only
    converted[1]["mask"] = {"size": [6, 8], "counts": "1"}
    converted.append(converted[2])
    path = parquet(tmp_path / "set", converted, plain_features())
    with pytest.raises(BadRowError, match=r"reference 0 .*the mask is empty"):
        load_mapped(path, "train")
    bad_rows = BadRows()
    rows = load_mapped(path, "train", bad_rows=bad_rows)
    assert rows["sentences"] == [["s2"]]
    assert rows.features == FEATURES
    assert bad_rows.counts() == {"mask_empty": 1, "mask_malformed": 1, "duplicate_id": 1}
    stream = load_mapped(path, "train", streaming=True, bad_rows=BadRows())
    assert [row["sentences"] for row in stream] == [["s2"], ["s2"]]


def test_columns_with_our_names_but_other_types_are_converted(tmp_path):
    rows = [{"image": png(), "sentences": "s", "mask": [OUTLINE], "ref_id": 5}]
    features = {"image": Image(), "sentences": TEXT, "mask": List(List(NUMBER)), "ref_id": Value("int32")}
    path = parquet(tmp_path / "set", rows, features)
    assert loaded(path, None)["ref_id"] == [5]


def test_a_folder_from_save_to_disk_is_read(tmp_path, converted):
    rows = datasets.Dataset.from_list(converted, features=plain_features())
    datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(tmp_path / "set")
    assert mapped_splits(str(tmp_path / "set")) == ["train", "val"]
    assert len(loaded(str(tmp_path / "set"), None, "val")) == 3


def test_columns_may_hold_file_names_of_images_and_masks(tmp_path):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(png()["bytes"])
    (folder / "images" / "m.png").write_bytes(png(SQUARE * 255)["bytes"])
    lines = [{"file": name, "text": "the square", "mask": "m.png"} for name in ("a.png", "missing.png")]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    columns = "image=file,sentences=text,mask=mask"
    bad_rows = BadRows()
    rows = loaded(str(folder), columns, image_folder=folder / "images", bad_rows=bad_rows)
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)
    assert rows["file_name"] == ["a.png"]
    assert bad_rows.counts() == {"image_missing": 2}  # one from disk, one from the stream


def test_an_imagefolder_of_datasets_is_read(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png()["bytes"])
    (folder / "metadata.csv").write_text('file_name,text,polygon\na.png,the square,"[2,1,6,1,6,4,2,4]"\n')
    row = loaded(str(tmp_path / "set"), "sentences=text,mask=polygon")[0]
    np.testing.assert_array_equal(decode_row(row)[1], SQUARE)
    assert row["file_name"] == "a.png"


def test_errors_about_a_dataset_are_one_line(tmp_path):
    path = simple(tmp_path / "set")
    for columns, split, message in (
        ("box=bx", "train", "expected the column 'bx' for 'box', got image, sentences, box"),
        ("box=box", "val", "no split 'val', expected one of train"),
    ):
        for streaming in (False, True):
            with pytest.raises(ValueError, match=message):
                load_mapped(path, split, ColumnMapping.parse(columns), streaming=streaming)
    with pytest.raises(ValueError, match=r"got image, sentences, box; pass a column mapping, for example .*lmms-lab"):
        load_mapped(path, "train")
    with pytest.raises(OSError, match="user/none: cannot be reached"):
        load_mapped("user/none", "train")
    (tmp_path / "set" / "data" / "train-00000-of-00001.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="`datasets` cannot read it"):
        load_mapped(path, "train", ColumnMapping(box="box"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image=a", "expected exactly one of 'mask' and 'box'"),
        ("mask=a,box=b", "expected exactly one of 'mask' and 'box'"),
        ("mask=a,label=b", "expected the fields image, sentences, .*, got label; remove or rename"),
        ("box=a,box_format=cxcywh", "expected xywh or xyxy as 'box_format' of a column mapping, got 'cxcywh'"),
        ("mask=a,units=feet", "expected pixels or fractions as 'units' of a column mapping, got 'feet'"),
        ("mask=", "expected 'mask' of type str, not empty, got ''"),
        ("mask=a,splits=b", "expected 'splits' of type dict, not empty, got 'b'"),
    ],
)
def test_an_invalid_mapping_is_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        ColumnMapping.parse(text)


def test_a_mapping_is_read_from_yaml(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("image: img\nmask: m\nsplits: {testA: test}\n")
    assert ColumnMapping.parse(str(file)) == ColumnMapping(image="img", mask="m", splits={"testA": "test"})
    for text, message in (("a: [", "expected YAML"), ("- a", "expected the fields image"), ("mask: 3", "type str")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            ColumnMapping.parse(str(file))
    with pytest.raises(FileNotFoundError, match="one of jxu124-refcoco, "):
        ColumnMapping.parse("nothing")


def test_dotted_paths_read_structs_lists_and_json_text():
    row = {"a": {"b": [{"c": 1}, {"c": 2}]}, "t": '{"x": {"y": 3}}', "d.e": 4}
    assert [look_up(row, path) for path in ("a.b.c", "t.x.y", "d.e", "a.q", "a.q.r")] == [[1, 2], 3, 4, None, None]


# Columns as documented in the repositories' cards and in public code, with synthetic rows.
POLYGON = [OUTLINE]
JXU124 = (
    {
        "sent_ids": List(Value("int64")),
        "file_name": TEXT,
        "ann_id": Value("int64"),
        "ref_id": Value("int64"),
        "image_id": Value("int64"),
        "split": TEXT,
        "sentences": List({"raw": TEXT, "sent": TEXT, "sent_id": Value("int64"), "tokens": List(TEXT)}),
        "category_id": Value("int64"),
        "raw_anns": TEXT,
        "raw_image_info": TEXT,
        "image_path": TEXT,
        "bbox": List(Value("float64")),
    },
    {
        "sent_ids": [3],
        "file_name": "a_7.jpg",
        "ann_id": 7,
        "ref_id": 5,
        "image_id": 1,
        "split": "testA",
        "sentences": [{"raw": "The Square", "sent": "the square", "sent_id": 3, "tokens": ["the", "square"]}],
        "category_id": 2,
        "raw_anns": json.dumps({"segmentation": POLYGON, "id": 7}),
        "raw_image_info": json.dumps({"file_name": "a.png", "height": 6, "width": 8}),
        "image_path": "coco/train2014/a.png",
        "bbox": [2.0, 1.0, 6.0, 4.0],
    },
)
SHIPPED = {
    "jxu124-refcoco": (*JXU124, "test", "testA"),
    "jxu124-refcocog": (*JXU124, "validation", "val"),
    "jxu124-refcoco-benchmark": (
        {
            "image": Image(),
            "ref_list": List(
                {
                    "ann_info": {"bbox": List(NUMBER), "segmentation": List(List(NUMBER)), "id": Value("int64")},
                    "ref_info": {"ref_id": Value("int64"), "sentences": List({"sent": TEXT, "raw": TEXT})},
                }
            ),
        },
        {
            "image": png(),
            "ref_list": [
                {
                    "ann_info": {"bbox": [2, 1, 4, 3], "segmentation": POLYGON, "id": 7},
                    "ref_info": {"ref_id": 5, "sentences": [{"sent": "the square", "raw": "The Square"}]},
                }
            ],
        },
        "refcoco_unc_val",
        "refcoco_unc_val",
    ),
    "lmms-lab-refcoco": (
        {
            "question_id": TEXT,
            "image": Image(),
            "question": TEXT,
            "answer": List(TEXT),
            "segmentation": List(NUMBER),
            "bbox": List(NUMBER),
            "iscrowd": Value("int8"),
            "file_name": TEXT,
        },
        {
            "question_id": "5",
            "image": png(),
            "question": "?",
            "answer": ["the square"],
            "segmentation": OUTLINE,
            "bbox": [2, 1, 4, 3],
            "iscrowd": 0,
            "file_name": "a.png",
        },
        "val",
        "val",
    ),
    "moondream-refcoco-m": (
        {
            "image": Image(),
            "image_id": Value("int64"),
            "file_name": TEXT,
            "samples": List(
                {
                    "id": Value("int64"),
                    "sentences": List(TEXT),
                    "bbox": List(NUMBER),
                    "mask": {"counts": TEXT, "size": List(Value("int32"))},
                }
            ),
        },
        {
            "image": png(),
            "image_id": 1,
            "file_name": "a.png",
            "samples": [
                {
                    "id": 5,
                    "sentences": ["the square"],
                    "bbox": [2, 1, 4, 3],
                    "mask": hub_rows.read_mask(OUTLINE, 6, 8, ""),
                }
            ],
        },
        "validation",
        "val",
    ),
}


def test_each_shipped_mapping_has_a_case_here():
    assert sorted(SHIPPED) == shipped_mappings()
    for name in shipped_mappings():
        shipped = ColumnMapping.parse(name)
        for repository in shipped.repositories:
            assert ColumnMapping.for_repository(repository.upper()) == shipped
    assert ColumnMapping.for_repository("lmms-lab-encoder/RefCOCO") == ColumnMapping.parse("lmms-lab-refcoco")
    assert ColumnMapping.for_repository("user/name") is None


@pytest.mark.parametrize(("name", "case"), SHIPPED.items(), ids=SHIPPED)
def test_shipped_mappings_fit_the_documented_columns(tmp_path, name, case):
    features, row, original, ours = case
    path = parquet(tmp_path / "set", [row], features, f"{original}-00000-of-00001")
    (tmp_path / "a.png").write_bytes(png()["bytes"])
    assert mapped_splits(path, ColumnMapping.parse(name)) == [ours]
    rows = loaded(path, name, ours, image_folder=tmp_path)
    np.testing.assert_array_equal(decode_row(rows[0])[1], SQUARE)
    ref_id = 5 if ColumnMapping.parse(name).ref_id else 0
    assert (rows[0]["sentences"], rows[0]["ref_id"], rows[0]["split"]) == (["the square"], ref_id, ours)


def test_validation_in_a_column_is_val(tmp_path):
    features = {"image": Image(), "sentences": TEXT, "box": List(NUMBER), "set": TEXT}
    names = ("train", "validation", "validation", None)
    rows = [{"image": png(), "sentences": str(name), "box": [0, 0, 3, 3], "set": name} for name in names]
    path = parquet(tmp_path / "set", rows, features)
    columns = ColumnMapping(box="box", split="set")
    assert mapped_splits(path, columns) == ["train", "val"]
    bad_rows = BadRows()
    assert len(load_mapped(path, "val", columns, bad_rows=bad_rows)) == 2
    assert "row 3: expected a split in 'set', got nothing" in str(bad_rows[0])
    with pytest.raises(ValueError, match="no split 'test', expected one of train, val, the values of 'set'"):
        load_mapped(path, "test", columns, bad_rows=BadRows())


EMPTY = {
    "image": (None, "'image': expected an image, got none"),
    "mask": (None, "expected a value in every column, got none in 'mask'"),
    "ref_id": (None, "got none in 'ref_id'"),
    "sentences": (None, "got none in 'sentences'"),
    "size": ({"size": [6], "counts": "0"}, r"'mask': expected a size \[height, width\], got \[6\]"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_missing_values_of_converted_rows_are_named(tmp_path, converted, name):
    value, message = EMPTY[name]
    converted[1][{"size": "mask"}.get(name, name)] = value
    path = parquet(tmp_path / "set", converted, plain_features())
    with pytest.raises(BadRowError, match=message):
        load_mapped(path, "train")
    for streaming in (False, True):
        bad_rows = BadRows()
        rows = load_mapped(path, "train", streaming=streaming, bad_rows=bad_rows)
        assert [row["sentences"] for row in rows] == [["s0"], ["s2"]]
        assert len(bad_rows) == 1


@pytest.mark.parametrize("converted_rows", [True, False])
def test_a_url_is_not_fetched(tmp_path, converted, converted_rows):
    image = {"path": "https://host.invalid/a.png", "bytes": None}
    features, row = plain_features(), {**converted[0], "image": image}
    if not converted_rows:
        features = datasets.Features({name: features[name] for name in ("image", "sentences", "mask")})
        row = {name: row[name] for name in features}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist([row], features.arrow_schema), tmp_path / "set" / "train.parquet")
    with pytest.raises(BadRowError, match=r"'image': expected an image or its file name, got the URL 'https://host"):
        load_mapped(str(tmp_path / "set"), "train")


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    path = simple(tmp_path / "set")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(OSError, match=r"cache: the cache of `datasets` cannot be written \(.*set HF_HOME to a folder"):
        load_mapped(path, "train", ColumnMapping(box="box"))


def test_repeated_ids_name_both_rows(tmp_path):
    rows = [{"image": png(), "sentences": "s", "box": [0, 0, 3, 3], "id": number} for number in (4, 5, 4)]
    features = {"image": Image(), "sentences": TEXT, "box": List(NUMBER), "id": Value("int64")}
    path = parquet(tmp_path / "set", rows, features)
    with pytest.raises(BadRowError, match="row 2: expected a unique 'id', got 4, used by row 0"):
        load_mapped(path, "train", ColumnMapping(box="box", ref_id="id"))
