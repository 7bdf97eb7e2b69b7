"""Pickles, copies and replicas of models of transformers whose hidden states are requested.

The first such forward pass registers hooks. transformers defines them as local functions, which pickle refuses, and
each replica of `nn.DataParallel` would register them again. Which outputs a class records is found out in the
constructor, so an unpickled model does not know it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

_INSTALLED = "_output_capturing_hooks_installed"  # set by transformers on the models that have the hooks


class PortableModule(nn.Module):
    """Base of modules that contain models of transformers, and can be pickled, copied and replicated at any time."""

    def __getstate__(self) -> dict[str, Any]:
        for module in self.modules():
            for key, hook in module._forward_hooks.items():
                if getattr(hook, "__module__", None) == output_capturing.__name__:
                    module._forward_hooks[key] = _CaptureHook(hook)
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for module in self.modules():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _CaptureHook) and hook.hook is None:
                    del module._forward_hooks[key]  # the next forward pass registers it again
                    for flags in (module._forward_hooks_with_kwargs, module._forward_hooks_always_called):
                        flags.pop(key, None)
            if isinstance(module, PreTrainedModel):
                if getattr(module, _INSTALLED, False):
                    setattr(module, _INSTALLED, False)
                known: Any = output_capturing._CAN_RECORD_REGISTRY
                dict.__setitem__(known, str(type(module)), module._can_record_outputs)

    def _replicate_for_data_parallel(self) -> PortableModule:
        # Replicas share the dictionaries of hooks, but not the mark of transformers that the hooks are registered.
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and _captures_outputs(module):
                output_capturing.maybe_install_capturing_hooks(module)
        return super()._replicate_for_data_parallel()  # type: ignore[misc]


def _captures_outputs(model: PreTrainedModel) -> bool:
    """Return whether a model's forward is decorated with transformers' `capture_outputs`."""
    function: Any = type(model).forward
    while function is not None:
        if function.__code__.co_filename == output_capturing.__file__:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


class _CaptureHook:
    """A hook of transformers that is omitted when its module is pickled or copied."""

    def __init__(self, hook: Callable | None = None) -> None:
        self.hook = hook

    def __call__(self, *args: Any) -> Any:
        return None if self.hook is None else self.hook(*args)

    def __reduce__(self) -> tuple:
        return type(self), ()
