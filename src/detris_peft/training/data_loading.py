"""Data loader of the training rows."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from torch.utils.data import DataLoader

from ..data import Collator, StreamedSamples, TrainingSamples
from ..data.augmentation import RandomAugmentation
from ..data.workers import ignore_signals
from ..processing_detris import DetrisProcessor
from .arguments import TrainingArguments
from .batching import GlobalBatches, StreamedBatches


def check_rows(train_rows: datasets.Dataset | datasets.IterableDataset, val_rows: datasets.Dataset) -> None:
    """Raise a ValueError if a split is empty, or if the validation rows are a stream."""
    if isinstance(val_rows, datasets.IterableDataset):
        raise ValueError("val_rows: expected a Dataset, got a stream; load the validation split without streaming.")
    number = "streamed" if isinstance(train_rows, datasets.IterableDataset) else len(train_rows)
    if number == 0 or not len(val_rows):
        raise ValueError(
            f"expected training and validation rows, got {number} training rows and {len(val_rows)} validation rows; "
            "check the dataset and its splits."
        )


def create_loader(
    rows: datasets.Dataset | datasets.IterableDataset,
    processor: DetrisProcessor,
    arguments: TrainingArguments,
    accelerator: Accelerator,
) -> tuple[Any, GlobalBatches | StreamedBatches]:
    """Return this rank's loader of the training rows, and the batches it yields."""
    sampling: dict[str, Any] = {
        "seed": arguments.seed,
        "skip_bad_rows": arguments.skip_bad_rows,
        "augment": RandomAugmentation(image_mean=processor.image_mean) if arguments.augment else None,
        "is_visible": processor.is_visible,
        "image_size": processor.image_size,  # large JPEGs are decoded at reduced size
    }
    loading: dict[str, Any] = {
        "num_workers": arguments.num_workers,
        "collate_fn": Collator(processor, keep_masks=False),
        "worker_init_fn": ignore_signals,
        # A separate generator, so that the workers' seeds are not drawn from the one that dropout uses.
        "generator": torch.Generator().manual_seed(arguments.seed),
    }
    if isinstance(rows, datasets.IterableDataset):
        loader = DataLoader(StreamedSamples(rows, **sampling), arguments.batch_size, **loading)
        # Expressions and other strings cannot be broadcast, so every rank reads the stream itself.
        loader = prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            put_on_device=True,
            dispatch_batches=False,
        )
        return loader, StreamedBatches(accelerator.num_processes)
    batches = GlobalBatches(
        len(rows),
        arguments.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        arguments.gradient_accumulation_steps,
    )
    # accelerate's own sharding would pad the last batches with samples that were already visited.
    loader = DataLoaderShard(TrainingSamples(rows, **sampling), accelerator.device, batch_sampler=batches, **loading)
    return loader, batches
