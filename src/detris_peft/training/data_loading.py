"""Data loader of the training rows."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from torch.utils.data import DataLoader

from ..data import Collator, StreamedSamples, TrainingSamples
from ..data.augmentation import Mosaic, RandomAugmentation, can_be_flipped
from ..data.workers import ignore_signals
from ..processing_detris import DetrisProcessor
from .arguments import TrainingArguments
from .batching import GlobalBatches, StreamedBatches


def create_augmentation(processor: DetrisProcessor, arguments: TrainingArguments) -> RandomAugmentation | None:
    """Return the augmentation that the arguments ask for, or None."""
    if not arguments.augment:
        return None
    return RandomAugmentation(flip=0.5 if arguments.augment_mirror else 0.0, image_mean=processor.image_mean)


def describe_mirroring(rows: datasets.Dataset | datasets.IterableDataset, arguments: TrainingArguments) -> str | None:
    """Return one line that says which images the augmentation mirrors; None without augmentation."""
    if not arguments.augment:
        return None
    if not arguments.augment_mirror:
        return "augment: images are not mirrored (augment_mirror is false)."
    which = "images whose expression is English and known to be true of the mirrored image"
    if isinstance(rows, datasets.IterableDataset):
        return f"augment: only {which} are mirrored; set --augment_mirror false to mirror none."
    sentences = [sentence for row in rows["sentences"][:] for sentence in row]
    count = sum(map(can_be_flipped, sentences))
    return (
        f"augment: only {which} are mirrored, {count} of {len(sentences)} expressions; set --augment_mirror false to "
        "mirror none."
    )


def describe_mosaics(samples: Any) -> str | None:
    """Return one line that says how many expressions allow a mosaic; None without mosaics."""
    if not isinstance(samples, TrainingSamples) or samples.mosaic is None:
        return None
    allowed = samples.mosaic.allowed
    return (
        "mosaic_ratio: only images whose expression is English and known to name no position become mosaics, "
        f"{allowed.sum()} of {len(allowed)} expressions."
    )


def create_samples(
    rows: datasets.Dataset | datasets.IterableDataset, processor: DetrisProcessor, arguments: TrainingArguments
) -> TrainingSamples | StreamedSamples:
    """Return the samples of the training rows.

    Raises:
        ValueError: `no_target_ratio` or `mosaic_ratio` cannot use these rows.
    """
    sampling: dict[str, Any] = {
        "seed": arguments.seed,
        "skip_bad_rows": arguments.skip_bad_rows,
        "augment": create_augmentation(processor, arguments),
        "is_visible": processor.is_visible,
        "image_size": processor.image_size,  # large JPEGs are decoded at reduced size
        "as_arrays": True,
    }
    if isinstance(rows, datasets.IterableDataset):
        return StreamedSamples(rows, **sampling)
    mosaic = Mosaic(rows, processor, arguments.mosaic_ratio) if arguments.mosaic_ratio else None
    return TrainingSamples(rows, **sampling, no_target_ratio=arguments.no_target_ratio, mosaic=mosaic)


def create_loader(
    rows: datasets.Dataset | datasets.IterableDataset,
    processor: DetrisProcessor,
    arguments: TrainingArguments,
    accelerator: Accelerator,
) -> tuple[Any, GlobalBatches | StreamedBatches]:
    """Return this rank's loader of the training rows, for `processor.normalize_bytes`, and the batches it yields.

    Raises:
        ValueError: there are fewer rows than a batch, or rows that `no_target_ratio` or `mosaic_ratio` cannot use.
    """
    samples = create_samples(rows, processor, arguments)
    loading: dict[str, Any] = {
        "num_workers": arguments.num_workers,
        "collate_fn": Collator(processor, keep_masks=False, as_bytes=True),
        "worker_init_fn": ignore_signals,
        # A separate generator, so that the workers' seeds are not drawn from the one that dropout uses.
        "generator": torch.Generator().manual_seed(arguments.seed),
        **loading_options(accelerator, arguments.num_workers),
    }
    non_blocking = accelerator.device.type != "cpu"
    if isinstance(samples, StreamedSamples):
        # With several workers, each of them drops its own last batch, because it reads its own part of the stream.
        loader = DataLoader(samples, arguments.batch_size, drop_last=arguments.drop_last, **loading)
        # Expressions and other strings cannot be broadcast, so every rank reads the stream itself.
        loader = prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            put_on_device=True,
            dispatch_batches=False,
            non_blocking=non_blocking,
        )
        return loader, StreamedBatches(accelerator.num_processes)
    batches = GlobalBatches(
        len(samples),
        arguments.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        arguments.gradient_accumulation_steps,
        arguments.drop_last,
    )
    # accelerate's own sharding would pad the last batches with samples that were already visited.
    loader = DataLoaderShard(
        samples,
        accelerator.device,
        batch_sampler=batches,
        _non_blocking=non_blocking,
        **loading,
    )
    return loader, batches


def loading_options(accelerator: Accelerator, num_workers: int) -> dict[str, Any]:
    """Return options of a DataLoader: workers stay alive between epochs; batches for a GPU are in pinned memory."""
    return {"persistent_workers": num_workers > 0, "pin_memory": accelerator.device.type == "cuda"}
