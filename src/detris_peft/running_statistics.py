"""Running statistics of BatchNorm: forward passes that do not update them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def discard_statistics_updates(module: nn.Module) -> Iterator[None]:
    """Run the BatchNorms of a module on temporary copies of their running statistics.

    Copies rather than None: checkpointing checks that recomputation saves the same number of tensors.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: value.clone() for name, value in norm._buffers.items() if value is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
