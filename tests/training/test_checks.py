"""`train` names a wrong argument before it writes anything."""

from __future__ import annotations

import pytest

from detris_peft.training import train
from tests.helpers.toy_run import arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "model"}, "model: expected DetrisForReferringSegmentation, got str"),
        ({"processor": None}, "processor: expected DetrisProcessor, got NoneType"),
        ({"train_rows": []}, "train_rows: expected Dataset or IterableDataset, got list"),
        ({"val_rows": {}}, "val_rows: expected Dataset or IterableDataset, got dict"),
        ({"arguments": {"epochs": 1}}, "arguments: expected TrainingArguments, got dict"),
    ],
)
def test_an_argument_of_another_type_is_named(model, processor, rows, tmp_path, changes, message):
    given = {"model": model, "processor": processor, "train_rows": rows[0], "val_rows": rows[1]}
    with pytest.raises(TypeError, match=message):
        train(**{**given, "arguments": arguments(tmp_path / "run"), **changes})
    assert not (tmp_path / "run").exists()


def test_missing_columns_are_named(model, processor, rows, tmp_path):
    with pytest.raises(ValueError, match=r"val_rows: expected the columns of .*, got none named mask; load the rows"):
        train(model, processor, rows[0], rows[1].remove_columns("mask"), arguments(tmp_path / "run"))


def test_a_dataset_smaller_than_a_batch_is_refused_before_anything_is_written(model, processor, rows, tmp_path):
    with pytest.raises(
        ValueError, match=r"at most the 20 rows .*got 21, .*smaller --batch_size, or .*--drop_last fal"
    ):
        train(model, processor, *rows, arguments(tmp_path / "run", batch_size=21))
    assert not (tmp_path / "run").exists()


def test_an_empty_dataset_is_refused(model, processor, rows, tmp_path):
    with pytest.raises(ValueError, match="got 0 training rows and"):
        train(model, processor, rows[0].select([]), rows[1], arguments(tmp_path))
