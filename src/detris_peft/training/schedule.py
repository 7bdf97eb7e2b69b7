"""Learning-rate schedule: linear warm-up, then a step decay. Stateless, so resuming needs no scheduler state."""

from __future__ import annotations

from bisect import bisect_left

from .arguments import TrainingArguments


def scheduled_rate(base: float, arguments: TrainingArguments, epoch: int, step: int) -> float:
    """Return the learning rate at an epoch and a step, both 1-based.

    The warm-up factor is multiplied by `gamma` for each milestone before `epoch`, as in `MultiStepLR`.

    Args:
        base: learning rate of the parameter group, without warm-up and decay.
        arguments: training arguments.
        epoch: the epoch.
        step: the optimizer step.
    """
    warmup = min(1.0, step / (arguments.warmup_steps + 1))
    decay = arguments.gamma ** bisect_left(sorted(arguments.milestones), epoch)
    return base * warmup * decay
