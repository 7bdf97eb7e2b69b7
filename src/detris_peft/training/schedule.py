"""Learning-rate schedule: linear warm-up, then a step decay. Stateless, so resuming needs no scheduler state."""

from __future__ import annotations

from bisect import bisect_left

from .arguments import TrainingArguments


def learning_rate(arguments: TrainingArguments, epoch: int, step: int) -> float:
    """Return the learning rate at an epoch and an optimizer step, both 1-based.

    The warm-up factor is multiplied by `gamma` for each milestone before `epoch`, as in `MultiStepLR`.
    """
    warmup = min(1.0, step / (arguments.warmup_steps + 1))
    return arguments.learning_rate * warmup * arguments.gamma ** bisect_left(sorted(arguments.milestones), epoch)
