"""Scoring a model on a split: masks at the pictures' own size, each sample counted exactly once."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data import Collator, EvaluationSamples, batches
from .metrics import ReferringSegmentationMetrics, intersection_and_union
from .processing_detris import DetrisProcessor

MODEL_INPUTS = ("pixel_values", "input_ids", "labels")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    processor: DetrisProcessor,
    samples: EvaluationSamples,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """mIoU, oIoU and Pr@0.5 … Pr@0.9 by name, each in [0, 1], and the mean `loss`.

    Args:
        model: a `DetrisForReferringSegmentation`, prepared by the accelerator or not. Left in the mode it came in.
        processor: the one it was trained with.
        samples: what to score.
        accelerator: of the training run; a new one by default. Over several processes the samples are shared out,
            and every process gets the whole result.
        batch_size: samples a process and step.
        num_workers: processes that read pictures.
        progress: show a bar.
    """
    accelerator = accelerator or Accelerator()
    loader = DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=Collator(processor))
    loader = accelerator.prepare_data_loader(loader)
    model = model.to(accelerator.device)
    was_training = model.training
    model.eval()
    metrics, losses = ReferringSegmentationMetrics(), []
    hidden = not (progress and accelerator.is_main_process)
    try:
        for batch in tqdm(batches(loader), "evaluating", len(loader), unit="batch", leave=False, disable=hidden):
            with accelerator.autocast():
                outputs = model(**{name: batch[name] for name in MODEL_INPUTS})
            counts = _counts(processor, outputs, batch)
            # Drops the samples that the last batch was padded with, so that each counts once.
            intersections, unions = accelerator.gather_for_metrics(tuple(counts.to(accelerator.device)))
            metrics.add_counts(intersections, unions)
            losses.append(mean_over_processes(accelerator, outputs.loss))
    finally:
        model.train(was_training)
    return {**metrics.compute(), "loss": sum(losses) / len(losses)}


def mean_over_processes(accelerator: Accelerator, value: torch.Tensor) -> float:
    """The mean of a scalar tensor over all processes."""
    gathered: Any = accelerator.gather(value.detach().reshape(1))
    return gathered.mean().item()


def _counts(processor: DetrisProcessor, outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
    """(2, B): intersections and unions at the pictures' own size."""
    predictions = processor.post_process_referring_segmentation(outputs, batch["target_sizes"])
    pairs = zip(predictions, batch["masks"], strict=True)
    return torch.tensor([intersection_and_union(prediction, mask) for prediction, mask in pairs]).T
