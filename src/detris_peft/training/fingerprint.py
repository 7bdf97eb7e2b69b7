"""Fingerprint of a run: everything that its weights depend on. Resuming with a different fingerprint is rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import datasets
from accelerate import Accelerator
from torch import nn

from ..hashes import sha256_of_texts, sha256_of_weights
from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor
from .arguments import TrainingArguments

# Names, paths and versions in a model's config, which may differ between equal models.
_IGNORED_CONFIG_FIELDS = {
    "_name_or_path",
    "vision_name_or_path",
    "text_name_or_path",
    "base_model_name_or_path",
    "architectures",
    "transformers_version",
    "peft_version",
}


def run_fingerprint(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    train_rows: datasets.Dataset | datasets.IterableDataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return, keyed by name, everything that determines the weights after each step and which are the best."""
    joins_images = bool(arguments.no_target_ratio or arguments.mosaic_ratio)
    fixed = [option.name for option in fields(arguments) if not option.metadata["may_change_on_resume"]]
    return {
        **{name: getattr(arguments, name) for name in fixed},
        "num_processes": accelerator.num_processes,
        "engine": str(accelerator.distributed_type.value),
        "train_rows": dataset_fingerprint(train_rows, arguments.num_workers, joins_images),
        "val_rows": dataset_fingerprint(val_rows, 0, joins_images),
        "processor": _without(processor.to_dict(), _IGNORED_CONFIG_FIELDS),
        "tokenizer_sha256": sha256_of_texts([processor.tokenizer.backend_tokenizer.to_str()]),
        "frozen_weights_sha256": frozen_weights_fingerprint(model),
        "model": _without(model.config.to_dict(), _IGNORED_CONFIG_FIELDS),
    }


def dataset_fingerprint(
    rows: datasets.Dataset | datasets.IterableDataset, num_workers: int, joins_images: bool = False
) -> dict[str, Any]:
    """Return the fingerprint of a dataset. Streams are not read.

    Args:
        rows: the dataset.
        num_workers: workers per process, which determine the order of a stream.
        joins_images: whether samples depend on which references share an image or a category.
    """
    if isinstance(rows, datasets.IterableDataset):  # the order of a stream depends on the number of workers
        return {"stream": str(rows.split), "num_workers": num_workers}
    names = ["ref_id", "file_name", "mask", "sentences", *(["image_id", "category_id"] if joins_images else [])]
    columns = (rows[name] for name in names)
    return {"number": len(rows), "sha256": sha256_of_texts(map(repr, zip(*columns, strict=True)))}


def frozen_weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of the frozen weights of a model; see `sha256_of_weights`."""
    return sha256_of_weights((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _without(tree: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a copy of nested mappings without the entries with these names."""
    return {
        name: _without(value, names) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if name not in names
    }
