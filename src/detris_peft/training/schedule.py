"""Learning-rate schedule: linear warm-up, then a step decay. Stateless, so resuming needs no scheduler state."""

from __future__ import annotations

from bisect import bisect_left

from .arguments import TrainingArguments


def learning_rates(arguments: TrainingArguments, epoch: int, step: int) -> list[float]:
    """Return the learning rate of each parameter group (see `create_optimizer`) at an epoch and a step, both 1-based.

    The warm-up factor is multiplied by `gamma` for each milestone before `epoch`, as in `MultiStepLR`.
    """
    warmup = min(1.0, step / (arguments.warmup_steps + 1))
    decay = arguments.gamma ** bisect_left(sorted(arguments.milestones), epoch)
    bases = [arguments.learning_rate, arguments.backbone_learning_rate]
    return [base * warmup * decay for base in bases if base is not None]
