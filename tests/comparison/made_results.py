"""Results of runs that nobody trained: pixel counts and curves from a random generator, or given ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from detris_peft.comparison import Experiment
from detris_peft.comparison.results import RunResult, SampleCounts
from detris_peft.metrics import ReferringSegmentationMetrics
from detris_peft.modeling.parameter_counts import ParameterCounts


def make_experiment(*arms: str, **changes: Any) -> Experiment:
    """Return an experiment without options, whose first arm is the reference."""
    values = {"name": "made", "reference": arms[0], "seeds": [0, 1], "splits": ["val"], "common": {}}
    return Experiment(**{**values, "arms": {arm: {} for arm in arms}, **changes})


def make_counts(pairs: list[tuple[int, int]], images: list[int] | None = None) -> SampleCounts:
    """Return pixel counts of samples with these intersections and unions; by default, each has its own image."""
    intersections, unions = ([pair[i] for pair in pairs] for i in (0, 1))
    numbers = [*range(len(pairs))]
    return SampleCounts([*map(str, numbers)], images or numbers, intersections, unions, [*intersections])


def make_result(arm: str, seed: int, samples: SampleCounts, split: str = "val", epochs: int = 4) -> RunResult:
    """Return a result with these samples, and the metrics that belong to them."""
    metrics = ReferringSegmentationMetrics()
    metrics.add_counts(samples.intersections, samples.unions, samples.predicted)
    scores = metrics.compute()
    history = [
        {"epoch": n, "step": 10 * n, "train_loss": 1 / n, **{k: v * n / epochs for k, v in scores.items()}}
        for n in range(1, epochs + 1)
    ]
    return RunResult(
        arm=arm,
        seed=seed,
        settings={"options": {"batch_size": 32}},
        settings_sha256="0" * 64,
        options={},
        versions={},
        device="cpu",
        num_processes=1,
        seconds=60.0,
        interruptions=0,
        parameters=ParameterCounts(vision_adapter=200, text_adapter=50, neck=1000),
        history=history,
        metrics={split: scores},
        samples={split: samples},
    )


def random_counts(rng: np.random.Generator, number: int, mean: float) -> SampleCounts:
    """Return random counts of samples, two per image, with about this mean IoU."""
    unions = rng.integers(50, 500, number)
    intersections = (unions * np.clip(rng.normal(mean, 0.2, number), 0, 1)).astype(int)
    pairs = [*zip(intersections.tolist(), unions.tolist(), strict=True)]
    return make_counts(pairs, [i // 2 for i in range(number)])
