"""Guards against non-finite losses and out-of-memory errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import is_out_of_memory
from .arguments import TrainingArguments


def describe_gradients(model: nn.Module) -> str:
    """Describe the largest gradient after a backward pass. A non-finite gradient counts as the largest."""
    sizes = {n: p.grad.detach().abs().max().item() for n, p in model.named_parameters() if p.grad is not None}
    non_finite = [name for name, size in sizes.items() if not math.isfinite(size)]
    largest = max(sizes, key=lambda name: math.inf if name in non_finite else sizes[name])
    return (
        f"the largest gradient is {sizes[largest]:.3g} in {largest}, {len(non_finite)} of {len(sizes)} are not finite"
    )


def running_statistics(model: nn.Module) -> dict[torch.Tensor, torch.Tensor]:
    """Map each buffer of the BatchNorms in training mode to a copy, to restore it after a non-finite forward pass."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return {buffer: buffer.clone() for norm in norms for buffer in norm.buffers()}


@contextmanager
def memory_advice(arguments: TrainingArguments, evaluating: bool = False) -> Iterator[None]:
    """Re-raise an out-of-memory error (CPU or GPU) as a MemoryError that suggests options to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = str(error)
        if evaluating:
            advice = [f"an eval_batch_size below {arguments.eval_batch_size}"]
        else:
            advice = [f"a batch_size below {arguments.batch_size} with more gradient_accumulation_steps"]
            advice += [] if arguments.gradient_checkpointing else ["gradient_checkpointing"]
        advice += ["precision bf16"] if arguments.precision == "fp32" else []
        action = "An evaluation batch" if evaluating else "A training step"
        raise MemoryError(
            f"{action} does not fit in memory ({text.splitlines()[0] if text else 'MemoryError'}): try "
            f"{', or '.join(advice)}."
        ) from None
