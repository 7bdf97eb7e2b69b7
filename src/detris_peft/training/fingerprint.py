"""What a run is determined by: a checkpoint of another course is not gone on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import datasets
from accelerate import Accelerator
from torch import nn

from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor
from .arguments import TrainingArguments

# Options that do not change what the steps compute: a run may go on with others.
_FREE = {
    "output_dir",
    "epochs",
    "eval_batch_size",
    "gradient_checkpointing",
    "num_workers",
    "skip_bad_rows",
    "on_nan",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "resume",
    "overwrite_output_dir",
    "early_stopping_patience",
    "report_to",
    "logging_steps",
    "push_to_hub",
    "hub_private",
}
# Names and places in a model's config, which may differ where the model does not.
_PLACES = {
    "_name_or_path",
    "vision_name_or_path",
    "text_name_or_path",
    "base_model_name_or_path",
    "architectures",
    "transformers_version",
    "peft_version",
}


def course_of(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    train_rows: datasets.Dataset | datasets.IterableDataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What the weights after each step follow from, and which of them is best, field by field."""
    return {
        **{name: value for name, value in asdict(arguments).items() if name not in _FREE},
        "processes": accelerator.num_processes,
        "engine": str(accelerator.distributed_type.value),
        "train_rows": _content(train_rows, arguments.num_workers),
        "val_rows": _content(val_rows, 0),
        "processor": _without(processor.to_dict(), _PLACES),
        "tokenizer_sha256": _sha256([processor.tokenizer.backend_tokenizer.to_str()]),
        "frozen_weights_sha256": _sha256(_glances(model)),
        "model": _without(model.config.to_dict(), _PLACES),
    }


def _content(rows: datasets.Dataset | datasets.IterableDataset, num_workers: int) -> dict[str, Any]:
    """By what the rows of one dataset are told from those of another; a stream is not read for it."""
    if isinstance(rows, datasets.IterableDataset):  # whose order depends on the workers that share it
        return {"stream": str(rows.split), "num_workers": num_workers}
    columns = (rows[name] for name in ("ref_id", "file_name", "mask", "sentences"))
    return {"number": len(rows), "sha256": _sha256(map(repr, zip(*columns, strict=True)))}


def _glances(model: nn.Module) -> Iterator[str]:
    """Some numbers of each frozen weight, at fixed places: enough to tell other weights, and quickly read."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            values = weight.detach().flatten()
            yield f"{name} {values[:: max(1, len(values) // 16)].float().tolist()}"


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _without(tree: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {
        name: _without(value, names) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if name not in names
    }
