"""Parallel adapters: their branches run in parallel with an MLP, and need a second input.

- A forward pre-hook on an earlier module of the same block captures the second input. The hook is persistent and
  inside the block, so it also runs when gradient checkpointing recomputes the block.
- The captured value belongs to the running call: it is stored per thread (`CallState`) and consumed by the next
  forward of the layer. Hook and layer share one `CallState`, so the two also find each other in the replicas of
  `nn.DataParallel`, which are shallow copies called from threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from .config import ParallelAdapterConfig
from .layer import AdapterLayer, CallState
from .model import AdapterModel


class ParallelAdapterLayer(AdapterLayer):
    """A backbone module with parallel adapter branches: `base(x) + Σ scale · branch(x, second input)`.

    Subclasses implement `extract_input`, `make_branch` and `check_input`.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.input_hook: torch.utils.hooks.RemovableHandle | None = None

    @staticmethod
    def extract_input(args: tuple, kwargs: dict) -> Any:
        """Return the adapter's second input from the arguments of the block's `input_module`."""
        raise NotImplementedError

    def check_input(self, hidden_states: torch.Tensor, second_input: Any) -> tuple:
        """Return the arguments of the branch. Raise a ValueError if the second input is missing or does not fit."""
        raise NotImplementedError

    def register_input_hook(self, source: nn.Module) -> None:
        """Register the hook on `source`, an earlier module of the block, that captures the second input."""
        hook = _CaptureInput(self.extract_input, self.call_state)
        self.input_hook = source.register_forward_pre_hook(hook, with_kwargs=True)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        second_input, self.call_state.second_input = self.call_state.second_input, None
        result = self.base_layer(hidden_states, *args, **kwargs)
        return self.add_branches(result, lambda: self.check_input(hidden_states, second_input))

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the original module, without the hook (method name required by peft)."""
        base_layer = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        if self.input_hook is not None:
            self.input_hook.remove()
        return base_layer


class _CaptureInput:
    """Forward pre-hook that stores the second input of a block for the adapter in the same block.

    A class instead of a closure, so that it can be copied and pickled with the modules that it connects.
    """

    def __init__(self, extract: Callable[[tuple, dict], Any], call_state: CallState) -> None:
        self.extract, self.call_state = extract, call_state

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self.call_state.second_input = self.extract(args, kwargs)
        return args, kwargs


class ParallelAdapterModel(AdapterModel):
    """Inject `tuner_layer_cls` in parallel with the MLPs of the selected blocks.

    In addition to those of [`AdapterModel`], subclasses set the description of the second input.
    """

    tuner_layer_cls: type[ParallelAdapterLayer]
    config_cls: ClassVar[type[ParallelAdapterConfig]]
    second_input: ClassVar[str]  # its description in error messages

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        known = self.layouts.get(model_config.get("model_type", ""))
        if known is None and (peft_config.target_modules is None or peft_config.input_module is None):
            raise ValueError(
                f"{type(self).__name__}: expected a known backbone type ({', '.join(self.layouts)}), got "
                f"{model_config.get('model_type')!r}; set target_modules (the MLP of a block) and input_module (the "
                f"module of a block that receives {self.second_input}) in the config."
            )
        if known is not None:
            peft_config.target_modules = peft_config.target_modules or {known.mlp}
            peft_config.input_module = peft_config.input_module or known.input_module
        return super()._prepare_adapter_config(peft_config, model_config)

    def _connect(self, layer: ParallelAdapterLayer, peft_config: Any, key: str) -> None:
        layer.register_input_hook(self._input_module(peft_config, key))

    def _input_module(self, config: Any, key: str) -> nn.Module:
        block = config.match_block(key)
        name = f"{block.group(1)}.{config.input_module}" if block else config.input_module
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"input_module: expected a module of the block that receives {self.second_input} for the adapter at "
                f"{key!r}, got {name!r}, which does not exist; set input_module to a name within the block."
            ) from None
