"""Evaluation at the original image resolution; each sample is counted exactly once.

With `keep_aspect_ratio`, the canvas of a batch depends on all of its images. An image is therefore only batched with
images of its own canvas, so that its prediction does not depend on `batch_size` and equals that of `detris predict`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .data import Collator, EvaluationSamples, Sample, encode_mask, iterate_batches
from .data.errors import BadRowError, BadRows
from .data.workers import explained_worker_errors, ignore_signals
from .metrics import ReferringSegmentationMetrics, pixel_counts
from .modeling.losses import segmentation_loss
from .processing_detris import DetrisProcessor
from .progress import progress_bar

MODEL_INPUTS = ("pixel_values", "input_ids")
# Of NO_TARGET_METRIC_NAMES, those that no-target pairs are scored with: gIoU and cIoU would depend on their number.
PAIR_METRIC_NAMES = ("N-acc", "T-acc")


def evaluate(
    model: nn.Module,
    processor: DetrisProcessor,
    samples: EvaluationSamples | IterableDataset,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    bad_rows: BadRows | None = None,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a model on a split, and count each sample exactly once. The result does not depend on the batch size.

    Args:
        model: a `DetrisForReferringSegmentation`, whether or not prepared by the accelerator. Its mode is restored.
        processor: the processor that the model was trained with.
        samples: the samples to score; set their `skip_bad_rows` if `bad_rows` is given. A stream must yield all
            samples on each rank; the workers of a rank share them.
        accelerator: the accelerator of the training run, or None to create one. Samples are distributed over the
            ranks, and every rank returns the complete result.
        batch_size: batch size per process.
        num_workers: DataLoader workers per process.
        progress: show a progress bar.
        bad_rows: collects the errors of rows that cannot be scored, in row order, on every rank; these rows are
            excluded from the scores. None raises the first error.
        on_batch: called before each batch on every rank; its exceptions end the evaluation.

    Returns:
        The mean `loss`, and mIoU, oIoU and Pr@0.5 to Pr@0.9 in [0, 1], keyed by name. If some sentences have no
        target, also gIoU, cIoU, N-acc and T-acc: see `ReferringSegmentationMetrics`. If the samples have
        `no_target_pairs`, these are only counted in N-acc, which is then reported together with T-acc.

    Raises:
        BadRowError: a row cannot be scored, and `bad_rows` is None.
        ValueError: there is no valid sample to score, or a number is out of range.
        TypeError: an argument has another type; the message names it.
        OSError: a DataLoader worker was killed.
        MemoryError: a worker ran out of memory.
    """
    scores = score_samples(
        model,
        processor,
        samples,
        accelerator=accelerator,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        bad_rows=bad_rows,
        on_batch=on_batch,
    )
    return scores.summary(samples.first_pair if isinstance(samples, EvaluationSamples) else None)


@dataclass
class SampleScores:
    """Scores of N samples, each once, in the order of the samples; invalid rows are excluded.

    Attributes:
        indices: (N,) indices of the samples.
        intersections, unions, predicted: (N,) pixel counts, see `detris_peft.metrics.pixel_counts`.
        losses: (N,) see `segmentation_loss`, with the model's `loss_weights`.
    """

    indices: np.ndarray
    intersections: np.ndarray
    unions: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray

    def summary(self, first_pair: int | None = None) -> dict[str, float]:
        """Return the metrics and the mean `loss`, as `evaluate` does.

        Args:
            first_pair: index from which on the samples are no-target pairs; None: there are none.
        """
        is_pair = np.zeros(len(self.indices), bool) if first_pair is None else self.indices >= first_pair
        summary = self._metrics(~is_pair)
        if is_pair.any():
            with_pairs = self._metrics(np.ones_like(is_pair))
            summary.update({name: with_pairs[name] for name in PAIR_METRIC_NAMES})
        return {**summary, "loss": float(self.losses[~is_pair].mean(dtype=np.float64))}

    def _metrics(self, selected: np.ndarray) -> dict[str, float]:
        metrics = ReferringSegmentationMetrics()
        metrics.add_counts(self.intersections[selected], self.unions[selected], self.predicted[selected])
        return metrics.compute()


@torch.no_grad()
def score_samples(
    model: nn.Module,
    processor: DetrisProcessor,
    samples: EvaluationSamples | IterableDataset,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    bad_rows: BadRows | None = None,
    on_batch: Callable[[], None] | None = None,
    predictions: dict[int, str] | None = None,
) -> SampleScores:
    """Score a model on a split, sample by sample; every rank returns the complete result.

    Args:
        predictions: receives the predicted mask of each valid sample, keyed by the sample's index, as the `counts` of
            a compressed RLE (see `detris_peft.data.encode_mask`); on every rank.

    The other arguments and the errors are those of `evaluate`.
    """
    _check_arguments(model, processor, samples, batch_size, num_workers)
    accelerator = accelerator or Accelerator()
    streamed = isinstance(samples, IterableDataset)
    loader = _loader(samples, processor, accelerator, batch_size, num_workers)
    model = model.to(accelerator.device)
    was_training = model.training
    model.eval()
    results, errors = [], []
    steps = progress_bar(
        iterate_batches(loader),
        "evaluating",
        None if streamed else len(loader),
        unit="batch",
        disable=not (progress and accelerator.is_main_process),
    )
    try:
        with explained_worker_errors():
            for batch in steps:
                if on_batch is not None:
                    on_batch()
                if batch["errors"] and bad_rows is None:
                    raise batch["errors"][0][1]
                errors += batch["errors"]
                groups = batch["groups"]
                results.append(accelerator.gather(_score_groups(model, processor, accelerator, groups, predictions)))
    finally:
        model.train(was_training)
    if bad_rows is not None:
        # A row occurs once per sentence, and distributed sampling pads the last batch with duplicates.
        unique: dict[str, BadRowError] = {}
        for _, error in sorted(gather_object(errors), key=lambda indexed: indexed[0]):
            unique.setdefault(str(error), error)
        bad_rows.extend(unique.values())
    if predictions is not None:
        predictions.update(gather_object([*predictions.items()]))
    return _concatenated(results)


def _score_groups(
    model: nn.Module,
    processor: DetrisProcessor,
    accelerator: Accelerator,
    groups: list[dict[str, Any]],
    masks: dict[int, str] | None,
) -> Any:
    """Return the results of `_score` for all groups of a batch, concatenated."""
    # DDP and FSDP communicate in each forward pass, so all ranks need the same number of them.
    distributed = processor.keep_aspect_ratio and accelerator.num_processes > 1
    number = max(gather_object([len(groups)])) if distributed else len(groups)
    scores = [_score(model, processor, accelerator, groups[min(i, len(groups) - 1)], masks) for i in range(number)]
    return tuple(torch.cat(parts) for parts in zip(*scores[: len(groups)], strict=True))


def _score(
    model: nn.Module,
    processor: DetrisProcessor,
    accelerator: Accelerator,
    batch: dict[str, Any],
    masks: dict[int, str] | None,
) -> Any:
    """Return (B, 4) of int64: index (-1 for invalid rows), intersection, union, predicted pixels; and (B,) losses.

    The predictions of valid rows are added to `masks`, if it is given.
    """
    batch = processor.normalize_bytes(batch)
    with accelerator.autocast():
        outputs = model(**{name: batch[name] for name in MODEL_INPUTS})
    weights = accelerator.unwrap_model(model).config.loss_weights
    losses = segmentation_loss(outputs.logits, batch["labels"], "none", weights)
    predictions = processor.post_process_referring_segmentation(outputs, batch["target_sizes"])
    counts = [pixel_counts(prediction, mask) for prediction, mask in zip(predictions, batch["masks"], strict=True)]
    indices = torch.where(batch["valid"], batch["indices"], -1)
    if masks is not None:
        for index, prediction in zip(indices.tolist(), predictions, strict=True):
            if index >= 0:
                masks[index] = encode_mask(prediction.cpu().numpy(), *prediction.shape)["counts"]
    return torch.cat([indices[:, None], torch.tensor(counts, device=accelerator.device)], dim=1), losses


def _concatenated(results: list[Any]) -> SampleScores:
    if not results:
        raise ValueError("expected samples to score, got none: the dataset is empty")
    counts, losses = (np.concatenate([part.cpu().numpy() for part in parts]) for parts in zip(*results, strict=True))
    # Distributed sampling pads the last batch with duplicates.
    indices, first = np.unique(counts[:, 0], return_index=True)
    first = first[indices >= 0]
    if not len(first):
        raise ValueError("expected samples to score, got none: every row is invalid; run `detris data check`")
    kept, intersections, unions, predicted = counts[first].T
    return SampleScores(kept, intersections, unions, predicted, losses[first])


def _loader(
    samples: Any, processor: DetrisProcessor, accelerator: Accelerator, batch_size: int, num_workers: int
) -> DataLoader:
    if type(samples) is EvaluationSamples:  # not a subclass, which may rely on PIL images
        samples = copy.copy(samples)
        samples.decoder = replace(samples.decoder, as_arrays=True)
    indexed = _IndexedStream(samples) if isinstance(samples, IterableDataset) else _IndexedSamples(samples)
    loader = DataLoader(
        indexed,
        batch_size,
        num_workers=num_workers,
        collate_fn=_IndexedCollator(Collator(processor, as_bytes=True)),
        worker_init_fn=ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
    )
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        put_on_device=True,
        dispatch_batches=False,  # masks of different sizes cannot be broadcast between ranks
        non_blocking=accelerator.device.type != "cpu",
    )


class _IndexedSamples(Dataset):
    """Dataset that adds the sample index, which identifies the duplicates added by distributed padding."""

    def __init__(self, samples: EvaluationSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        return index, self.samples[index]


class _IndexedStream(IterableDataset):
    """Stream that adds the sample index; the workers of a rank share its samples."""

    def __init__(self, samples: IterableDataset) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for count, sample in enumerate(self.samples):
            yield first + count * step, sample


@dataclass
class _IndexedCollator:
    collator: Collator

    def __call__(self, indexed: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
        """Return `groups`, one batch per canvas, and `errors`: the (index, error) of every invalid row."""
        groups: dict[tuple[int, int], list[tuple[int, Sample]]] = {}
        for index, sample in indexed:
            groups.setdefault(self.collator.canvas_size(sample), []).append((index, sample))
        errors = [
            (index, error)
            for index, sample in indexed
            for error in (*sample.skipped, sample.error)
            if error is not None
        ]
        return {"groups": [self._batch(group) for group in groups.values()], "errors": errors}

    def _batch(self, indexed: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
        """Return the batch with `indices` and `valid` (B,)."""
        samples = [sample for _, sample in indexed]
        return {
            **self.collator(samples),
            "indices": torch.tensor([index for index, _ in indexed]),
            "valid": torch.tensor([sample.error is None for sample in samples]),
        }


def _check_arguments(model: Any, processor: Any, samples: Any, batch_size: Any, num_workers: Any) -> None:
    for name, value, expected, advice in (
        ("model", model, nn.Module, "a DetrisForReferringSegmentation"),
        ("processor", processor, DetrisProcessor, "a DetrisProcessor"),
        ("samples", samples, Dataset, "EvaluationSamples(rows)"),
    ):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected {expected.__name__}, got {type(value).__name__}; pass {advice}.")
    for name, value, minimum in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name}: expected an integer of at least {minimum}, got {value!r}; change it.")
