"""Scores of a checkpoint, as its model card shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .hub_benchmarks import HubBenchmark

_PERCENT_METRICS = re.compile(r"mIoU|oIoU|gIoU|cIoU|Pr@[\d.]+|[NT]-acc")


@dataclass
class TrainingResults:
    """Scores of a checkpoint, and what it was trained on.

    Attributes:
        metrics: scores in [0, 1], keyed by name. Of all other entries only `epoch` and `step` are shown.
        dataset: the evaluated dataset, such as "refcoco" or a Hub id.
        split: the evaluated split.
        trained_on: the training datasets; default: the evaluated one.
        options: the options in `run.json`; the card shows those that describe the training.
        benchmarks: tasks of benchmarks on the Hub whose data is the evaluated split. Their metrics are published on
            the leaderboards, and the others as `model-index`.
    """

    metrics: Mapping[str, float]
    dataset: str
    split: str
    trained_on: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    benchmarks: Sequence[HubBenchmark] = ()

    @property
    def scores(self) -> dict[str, float]:
        """The metrics that are shown in percent."""
        return {name: float(value) for name, value in self.metrics.items() if _PERCENT_METRICS.fullmatch(name)}


def is_hub_name(name: str) -> bool:
    """Return whether a backbone's name is a Hub id rather than a local folder."""
    return not (name.startswith(".") or os.path.isabs(name) or os.path.isdir(name))


def plain_name(dataset: str) -> str:
    """Return a dataset's name without local paths."""
    return dataset if is_hub_name(dataset) else Path(dataset).resolve().name
