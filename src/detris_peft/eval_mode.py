"""Eval mode for the duration of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

_lock = Lock()
# Per model: the number of blocks that run, and the modules that were in training mode before the first of them.
_running: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to eval mode, and afterwards every module to the mode that it had.

    If several threads do this with one model, it stays in eval mode until the last of them is done.
    """
    with _lock:
        count, training = _running.get(model, (0, []))
        if not count:
            training = [module for module in model.modules() if module.training]
            if training:
                model.eval()
        _running[model] = count + 1, training
    try:
        yield
    finally:
        with _lock:
            count, training = _running.pop(model)
            if count > 1:
                _running[model] = count - 1, training
            else:
                for module in training:  # not model.train(), which would change modules that were in eval mode
                    module.training = True
