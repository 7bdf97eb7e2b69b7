"""Rows of labeled images, whatever the tool."""

from functools import partial

import pytest
from PIL import Image

from detris_peft.data import BadRowError, BadRows, decode_row
from detris_peft.data.errors import NoSentencesError, collect_notices
from detris_peft.data.fields import read_mask
from detris_peft.data.readers.labels.objects import LabeledImage, LabeledObject, object_id
from detris_peft.data.readers.labels.reader import label_rows

OUTLINE = [2, 1, 6, 1, 6, 4, 2, 4]


def item(index=0, **fields):
    mask = partial(read_mask, OUTLINE, where=f"a.json: shape {index}")
    return LabeledObject(f"a.json: shape {index}", object_id("a.png", index), mask, label="square", **fields)


def image(folder, *objects, **fields):
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    return LabeledImage("a.json", folder / "a.png", "a.png", folder, "train", objects, **fields)


def rows(images, split="train", bad_rows=None, advice="{a}: {count:,} objects", **options):
    return label_rows(images, split, "set", bad_rows, advice, **options)


def test_objects_with_sentences_become_rows(tmp_path):
    found = rows([image(tmp_path, item(0, sentences="the square"), item(1), item(2, sentences=["a", "b"], order=-1))])
    assert found["sentences"] == [["a", "b"], ["the square"]]
    assert found["ref_id"] == [object_id("a.png", 2), object_id("a.png", 0)]
    assert decode_row(found[0])[1].sum() == 12


def test_objects_of_other_splits_are_left_out(tmp_path):
    found = [image(tmp_path, item(0, sentences="x", split="val"), item(1, sentences="y"))]
    assert rows(found)["sentences"] == [["y"]]
    assert rows(found, "val")["sentences"] == [["x"]]
    assert len(rows(found, None)) == 2


def test_without_sentences_the_error_counts_the_objects_or_their_classes_are_used(tmp_path):
    found = [image(tmp_path, item(0), item(1))]
    with pytest.raises(NoSentencesError, match=r"\{a\}: 2 objects"):
        rows(found)
    assert rows(found, advice=None)["sentences"] == [["square"]] * 2


def test_an_invalid_object_and_an_invalid_image_are_collected_or_raised(tmp_path):
    errors = BadRowError("a.json: shape 1: bad"), BadRowError("b.json: bad")
    found = [image(tmp_path, item(0, sentences="x"), errors[0]), errors[1]]
    with pytest.raises(BadRowError, match="shape 1"):
        rows(found)
    bad_rows = BadRows()
    assert len(rows(found, bad_rows=bad_rows)) == 1
    assert bad_rows == list(errors)
    assert len(rows(found[1:], bad_rows=bad_rows)) == 0  # the errors are the reason, not missing sentences


def test_every_object_of_an_image_that_cannot_be_used_is_an_error(tmp_path):
    found = [image(tmp_path, item(0, sentences="x"), item(1, sentences="y"), size=(8, 6))]
    bad_rows = BadRows()
    rows(found, bad_rows=bad_rows)
    assert bad_rows.counts() == {"mask_malformed": 2}
    assert "expected an image of 6x8 pixels as in a.json, got" in str(bad_rows[0])


def test_equal_ids_are_an_error(tmp_path):
    with pytest.raises(BadRowError, match=r"two objects have \('x' and 'y'\); renumber") as caught:
        rows([image(tmp_path, item(0, sentences="x"), item(0, sentences="y"))])
    assert caught.value.kind == "duplicate_id"


def test_the_image_may_be_in_the_export(tmp_path):
    inside = image(tmp_path, item(0, sentences="x"))
    data = inside.file.read_bytes()
    inside.file.unlink()
    embedded = LabeledImage("a.json", tmp_path / "a.png", "a.png", tmp_path, "train", inside.objects, data=data)
    assert decode_row(rows([embedded])[0])[0].size == (8, 6)


def test_a_file_outside_the_dataset_is_noticed(tmp_path):
    (tmp_path / "set").mkdir()
    inside = image(tmp_path, item(0, sentences="x"))
    outside = LabeledImage("a.json", inside.file, "../a.png", tmp_path / "set", "train", inside.objects)
    with collect_notices() as notices:
        rows([outside])
    assert [kind for kind, _ in notices] == ["file_outside"]


def test_without_a_mask_the_sentence_refers_to_nothing(tmp_path):
    nothing = LabeledObject("a.json", 1, None, sentences="the cat")
    [row] = rows([image(tmp_path, nothing)])
    assert row["no_target"]
    assert decode_row(row)[1].sum() == 0
