"""Checks of the arguments of `train`, before anything is written."""

from __future__ import annotations

from typing import Any

import datasets

from ..data import FEATURES
from ..data.augmentation.no_target import AbsentSentences
from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor, check_processor
from .arguments import TrainingArguments
from .masked_view import MaskedView


def check_inputs(model: Any, processor: Any, train_rows: Any, val_rows: Any, arguments: Any) -> None:
    """Check the arguments of `train`.

    Raises:
        TypeError: an argument has another type; the message names it.
        ValueError: the processor does not belong to the model, its tokenizer has no mask token for a masked view, a
            split is empty or lacks columns, the validation rows are a stream, or the training rows are one although
            an argument needs all rows, or no validation image has a no-target pair.
    """
    for name, value, expected in (
        ("model", model, DetrisForReferringSegmentation),
        ("processor", processor, DetrisProcessor),
        ("train_rows", train_rows, (datasets.Dataset, datasets.IterableDataset)),
        ("val_rows", val_rows, (datasets.Dataset, datasets.IterableDataset)),
        ("arguments", arguments, TrainingArguments),
    ):
        if not isinstance(value, expected):
            names = " or ".join(t.__name__ for t in (expected if isinstance(expected, tuple) else (expected,)))
            raise TypeError(f"{name}: expected {names}, got {type(value).__name__}; pass the object that train needs.")
    check_processor(model.config, processor)
    if isinstance(val_rows, datasets.IterableDataset):
        raise ValueError("val_rows: expected a Dataset, got a stream; load the validation split without streaming.")
    number = "streamed" if isinstance(train_rows, datasets.IterableDataset) else len(train_rows)
    if number == 0 or not len(val_rows):
        raise ValueError(
            f"expected training and validation rows, got {number} training rows and {len(val_rows)} validation rows; "
            "check the dataset and its splits."
        )
    for name, rows in (("train_rows", train_rows), ("val_rows", val_rows)):
        missing = [column for column in FEATURES if column not in (rows.column_names or FEATURES)]
        if missing:
            raise ValueError(
                f"{name}: expected the columns of detris_peft.data.FEATURES, got none named {', '.join(missing)}; "
                "load the rows with a reader of detris_peft.data."
            )
    check_samples(processor, train_rows, val_rows, arguments)


def check_samples(
    processor: DetrisProcessor,
    train_rows: datasets.Dataset | datasets.IterableDataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
) -> None:
    """Check that the rows have what the arguments need; `create_samples` checks the content of the training rows.

    Raises:
        ValueError: the tokenizer has no mask token for a masked view, the training rows are a stream although an
            argument needs all rows, or no validation image has a no-target pair.
    """
    if arguments.distill_masked_view:
        MaskedView(processor, arguments, rank=0)  # raises without a mask token
    for name in ("no_target_ratio", "mosaic_ratio"):
        if getattr(arguments, name) and isinstance(train_rows, datasets.IterableDataset):
            raise ValueError(
                f"{name}: expected a dataset that is not streamed, got a stream, whose other rows are not known; load "
                f"it without streaming, or omit {name}."
            )
    if arguments.no_target_ratio:
        AbsentSentences(val_rows)  # raises without pairs
