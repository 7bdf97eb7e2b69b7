"""Scores of a finished run: its best checkpoint on every split, sample by sample, as in `detris evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from ..atomic import write_text
from ..data import BadRows, EvaluationSamples
from ..evaluation import score_samples
from ..modeling import DetrisForReferringSegmentation
from ..modeling.casting import cast_model
from ..modeling.parameter_counts import ParameterCounts, count_parameters
from ..precision import precision_dtype
from ..processing_detris import DetrisProcessor
from ..safe_loading import read_json
from ..training.launcher import launcher_settings
from .results import SampleCounts, run_name, sample_ids

PREDICTIONS_FOLDER = "predictions"


@dataclass
class Scores:
    """Scores of a checkpoint.

    Attributes:
        parameters: numbers of parameters by part of the model.
        metrics: metrics by split.
        samples: pixel counts by split.
        predictions: predicted masks by split and sample, as the `counts` of compressed RLEs.
    """

    parameters: ParameterCounts
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: dict[str, SampleCounts] = field(default_factory=dict)
    predictions: dict[str, dict[str, str]] = field(default_factory=dict)


def evaluation_samples(rows: datasets.Dataset, split: str, skip_bad_rows: bool = False) -> EvaluationSamples:
    """Return the samples of a split: the first sentence of a train or val reference, else every sentence."""
    sentences = "first" if split in ("train", "val") else "all"
    return EvaluationSamples(rows, sentences, skip_bad_rows=skip_bad_rows)


def score_checkpoint(
    folder: Path,
    rows: Mapping[str, datasets.Dataset],
    *,
    batch_size: int,
    num_workers: int,
    skip_bad_rows: bool = False,
) -> Scores:
    """Score a checkpoint on several splits. Every rank returns the complete scores.

    Args:
        folder: the checkpoint, with its processor.
        rows: dataset of each split.
        batch_size: batch size per process; it does not affect the scores.
        num_workers: DataLoader workers per process.
        skip_bad_rows: exclude invalid rows; otherwise the first one raises.
    """
    model = DetrisForReferringSegmentation.from_pretrained(folder)
    processor = DetrisProcessor.from_pretrained(folder)
    cast_model(model, precision_dtype(launcher_settings().get("precision", "fp32")))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    scores = Scores(count_parameters(model))
    for split, split_rows in rows.items():
        samples = evaluation_samples(split_rows, split, skip_bad_rows)
        masks: dict[int, str] = {}
        counts = score_samples(
            model,
            processor,
            samples,
            accelerator=accelerator,
            batch_size=batch_size,
            num_workers=num_workers,
            bad_rows=BadRows() if skip_bad_rows else None,
            predictions=masks,
        )
        indices = counts.indices
        all_ids = sample_ids(split_rows, samples.row_index, samples.sentence_index)
        image_ids = split_rows["image_id"]
        scores.metrics[split] = counts.summary()
        scores.samples[split] = SampleCounts(
            ids=[all_ids[index] for index in indices],
            images=[image_ids[int(samples.row_index[index])] for index in indices],
            intersections=counts.intersections.tolist(),
            unions=counts.unions.tolist(),
            predicted=counts.predicted.tolist(),
        )
        scores.predictions[split] = {all_ids[index]: masks[index] for index in indices}
    return scores


def write_predictions(folder: Path, arm: str, seed: int, predictions: Mapping[str, Mapping[str, str]]) -> None:
    """Write the predicted masks of a run to a comparison's folder, for Figure 2."""
    file = _predictions_file(folder, arm, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(predictions))


def read_predictions(folder: Path, arm: str, seed: int) -> dict[str, dict[str, str]] | None:
    """Return the predicted masks of a run by split and sample; None if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    file = _predictions_file(folder, arm, seed)
    try:
        content: Any = read_json(file)
    except FileNotFoundError:
        return None
    splits = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(masks, dict) and all(isinstance(m, str) for m in masks.values()) for masks in splits):
        raise ValueError(f"{file}: expected masks by split and sample, got other values; remove the file.")
    return content


def _predictions_file(folder: Path, arm: str, seed: int) -> Path:
    return folder / PREDICTIONS_FOLDER / f"{run_name(arm, seed)}.json"
