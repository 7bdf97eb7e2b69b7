"""Scoring a model on a split: masks at the images' own size, each sample counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm.auto import tqdm

from .data import Collator, EvaluationSamples, Sample, batches
from .data.errors import BadRowError, BadRows
from .data.workers import leave_signals_to_the_parent
from .metrics import ReferringSegmentationMetrics, pixel_counts
from .modeling.losses import segmentation_loss
from .processing_detris import DetrisProcessor

MODEL_INPUTS = ("pixel_values", "input_ids")


@torch.no_grad()
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
    """mIoU, oIoU and Pr@0.5 … Pr@0.9 by name, each in [0, 1], and the mean `loss`, each sample counted once.

    Where there are sentences without target, gIoU, cIoU, N-acc and T-acc too: see `ReferringSegmentationMetrics`.

    Args:
        model: a `DetrisForReferringSegmentation`, prepared by the accelerator or not. Left in the mode it came in.
        processor: the one it was trained with.
        samples: what to score, with `skip_bad_rows` where `bad_rows` is to collect. A stream of `Sample`s gives all of
            them on each process; its workers share them.
        accelerator: of the training run; a new one by default. Over several processes the samples are shared out,
            and every process gets the whole result.
        batch_size: samples a process and step.
        num_workers: processes that read images.
        progress: show a bar.
        bad_rows: collects the rows that cannot be scored, in their order, on every process; they count nowhere.
            None stops at the first.
        on_batch: called before each batch, on every process; what it raises ends the evaluation.

    Raises:
        BadRowError: see `bad_rows`.
        ValueError: there is no sample to score.
    """
    accelerator = accelerator or Accelerator()
    streamed = isinstance(samples, IterableDataset)
    loader = _loader(samples, processor, accelerator, batch_size, num_workers)
    model = model.to(accelerator.device)
    was_training = model.training
    model.eval()
    results, bad = [], []
    hidden = not (progress and accelerator.is_main_process)
    steps = tqdm(
        batches(loader), "evaluating", None if streamed else len(loader), unit="batch", leave=False, disable=hidden
    )
    try:
        for batch in steps:
            if on_batch is not None:
                on_batch()
            if batch["errors"] and bad_rows is None:
                raise batch["errors"][0][1]
            bad += batch["errors"]
            results.append(accelerator.gather(_score(model, processor, accelerator, batch)))
    finally:
        model.train(was_training)
    if bad_rows is not None:
        named: dict[
            str, BadRowError
        ] = {}  # a row comes with each of its sentences, and the last batches are filled up
        for _, error in sorted(gather_object(bad), key=lambda one: one[0]):
            named.setdefault(str(error), error)
        bad_rows.extend(named.values())
    return _summary(results)


def _score(model: nn.Module, processor: DetrisProcessor, accelerator: Accelerator, batch: dict[str, Any]) -> Any:
    """(B, 4) of int64: number (-1 of a bad row), intersection, union, predicted pixels; (B,) losses."""
    with accelerator.autocast():
        outputs = model(**{name: batch[name] for name in MODEL_INPUTS})
    losses = segmentation_loss(outputs.logits, batch["labels"], reduction="none")
    predictions = processor.post_process_referring_segmentation(outputs, batch["target_sizes"])
    counts = [pixel_counts(prediction, mask) for prediction, mask in zip(predictions, batch["masks"], strict=True)]
    numbers = torch.where(batch["good"], batch["numbers"], -1)
    return torch.cat([numbers[:, None], torch.tensor(counts, device=accelerator.device)], dim=1), losses


def _summary(results: list[Any]) -> dict[str, float]:
    if not results:
        raise ValueError("there is no sample to score: the dataset is empty")
    counts, losses = (np.concatenate([part.cpu().numpy() for part in parts]) for parts in zip(*results, strict=True))
    # Processes go in step, so the last batches are filled up with samples that had their turn.
    numbers, first = np.unique(counts[:, 0], return_index=True)
    first = first[numbers >= 0]
    if not len(first):
        raise ValueError("there is no sample to score: every row is bad")
    metrics = ReferringSegmentationMetrics()
    metrics.add_counts(*counts[first, 1:].T)
    return {**metrics.compute(), "loss": float(losses[first].mean(dtype=np.float64))}


def _loader(
    samples: Any, processor: DetrisProcessor, accelerator: Accelerator, batch_size: int, num_workers: int
) -> DataLoader:
    numbered = _NumberedStream(samples) if isinstance(samples, IterableDataset) else _Numbered(samples)
    loader = DataLoader(
        numbered,
        batch_size,
        num_workers=num_workers,
        collate_fn=_NumberedCollator(Collator(processor)),
        worker_init_fn=leave_signals_to_the_parent,
    )
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        put_on_device=True,
        dispatch_batches=False,  # masks of many sizes cannot be sent from one process to the others
    )


class _Numbered(Dataset):
    """Samples with their places, by which one that came twice is known."""

    def __init__(self, samples: EvaluationSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        return index, self.samples[index]


class _NumberedStream(IterableDataset):
    """The same for a stream, which the workers of a process share."""

    def __init__(self, samples: IterableDataset) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for place, sample in enumerate(self.samples):
            yield first + place * step, sample


@dataclass
class _NumberedCollator:
    collator: Collator

    def __call__(self, numbered: Sequence[tuple[int, Sample]]) -> dict[str, Any]:
        """The batch, with its samples' `numbers`, which of them are `good`, and all that is wrong, by number."""
        samples = [sample for _, sample in numbered]
        errors = [
            (number, error)
            for number, sample in numbered
            for error in (*sample.passed_over, sample.bad)
            if error is not None
        ]
        return {
            **self.collator(samples),
            "numbers": torch.tensor([number for number, _ in numbered]),
            "good": torch.tensor([sample.bad is None for sample in samples]),
            "errors": errors,
        }
