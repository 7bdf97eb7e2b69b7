"""What keeps a run from going on in silence when a step went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import TrainingArguments


def describe_gradients(model: nn.Module) -> str:
    """The largest gradient after a backward, with the weight it belongs to; one that is not finite is the largest."""
    sizes = {n: p.grad.detach().abs().max().item() for n, p in model.named_parameters() if p.grad is not None}
    lost = [name for name, size in sizes.items() if not math.isfinite(size)]
    largest = max(sizes, key=lambda name: math.inf if name in lost else sizes[name])
    return f"the largest gradient is {sizes[largest]:.3g} in {largest}, {len(lost)} of {len(sizes)} are not finite"


def running_statistics(model: nn.Module) -> dict[torch.Tensor, torch.Tensor]:
    """Buffer → copy, of each BatchNorm in training: a forward that is not finite spoils them."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return {buffer: buffer.clone() for norm in norms for buffer in norm.buffers()}


@contextmanager
def memory_advice(arguments: TrainingArguments, evaluating: bool = False) -> Iterator[None]:
    """Running out of memory, on a GPU or not, becomes a MemoryError that says what to turn."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        # On a CPU PyTorch raises a plain RuntimeError: "can't allocate memory", "not enough memory".
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and not ("memory" in text and ("allocate" in text or "not enough" in text)):
            raise
        if evaluating:
            turn = [f"an eval_batch_size below {arguments.eval_batch_size}"]
        else:
            turn = [f"a batch_size below {arguments.batch_size} with more gradient_accumulation_steps"]
            turn += [] if arguments.gradient_checkpointing else ["gradient_checkpointing"]
        turn += ["mixed_precision bf16"] if arguments.mixed_precision == "no" else []
        what = "An evaluation" if evaluating else "A step"
        raise MemoryError(
            f"{what} does not fit in memory ({text.splitlines()[0] if text else 'MemoryError'}): try "
            f"{', or '.join(turn)}."
        ) from None
