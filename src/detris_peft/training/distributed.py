"""Accelerator setup, and actions that succeed or fail on all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, patch_environment
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import one_line
from ..precision import describe_precision
from .arguments import TrainingArguments
from .launcher import describe_ignored_launcher_settings


def create_accelerator(arguments: TrainingArguments, finds_unused_parameters: bool = False) -> Accelerator:
    """Return an accelerator configured by the training arguments.

    Prints one line for each setting of `accelerate launch` that an argument replaces, and one with the precision.

    Args:
        arguments: training arguments.
        finds_unused_parameters: whether DDP searches each step for trained parameters without a gradient.
    """
    ignored = describe_ignored_launcher_settings(
        precision=arguments.precision, gradient_accumulation_steps=arguments.gradient_accumulation_steps
    )
    # The launcher's environment variable would override the argument and break the loss weights.
    with patch_environment(ACCELERATE_GRADIENT_ACCUMULATION_STEPS=arguments.gradient_accumulation_steps):
        accelerator = Accelerator(
            # Without cpu=True, accelerate treats CPU processes as independent runs.
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no" if arguments.precision == "fp32" else arguments.precision,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            step_scheduler_with_optimizer=False,
            log_with=cast(Any, arguments.report_to or None),
            project_dir=arguments.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
            if finds_unused_parameters
            else None,
        )
    for line in (*ignored, describe_precision(arguments.precision, accelerator.device)):
        accelerator.print(line)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin: Any = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=arguments.batch_size,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            gradient_clipping=arguments.max_grad_norm,
        )
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether the ranks may hold parts of the weights (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


class SumOverRanks:
    """The sum of a scalar over all ranks, and whether a flag is set on any of them, in one reduction.

    On a GPU, the constructor does not wait for the device; `read` waits until the sum is computed.
    """

    def __init__(self, accelerator: Accelerator, value: torch.Tensor, flag: bool) -> None:
        # Not torch.tensor, whose copy to a GPU waits for the device.
        both = torch.stack([value, torch.full_like(value, float(flag))])
        both = cast(torch.Tensor, accelerator.reduce(both, "sum"))
        self._event: torch.cuda.Event | None = None
        if both.device.type != "cuda":
            self._values = both
            return
        self._values = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
        self._values.copy_(both, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self) -> tuple[float, bool]:
        if self._event is not None:
            self._event.synchronize()
        total, flags = self._values.tolist()
        return total, flags > 0


def run_on_all_ranks(
    accelerator: Accelerator | PartialState, action: Callable[[], Any], main_only: bool = False
) -> str | None:
    """Run an action on all ranks, or on the main one. All ranks learn of a failure, so that none waits forever.

    Returns:
        The first error in one line; None if there was none.
    """
    failure = None
    try:
        if accelerator.is_main_process or not main_only:
            action()
    # PyTorch reports a full disk as RuntimeError, and during a sharded save as CheckpointException, a BaseException.
    except (OSError, RuntimeError, ValueError, SafetensorError, CheckpointException) as error:
        failure = one_line(error)
    return next((text for text in gather_object([failure]) if text), None)
