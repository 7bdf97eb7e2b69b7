"""Learning-rate schedule: warm-up, then milestones. A function of epoch and step alone."""

from __future__ import annotations

from bisect import bisect_left

from .arguments import TrainingArguments


def learning_rate(arguments: TrainingArguments, epoch: int, step: int) -> float:
    """Of a step of the optimizer, both counted from 1: warm-up times milestones."""
    warmup = min(1.0, step / (arguments.warmup_steps + 1))
    return arguments.learning_rate * warmup * arguments.gamma ** bisect_left(sorted(arguments.milestones), epoch)
