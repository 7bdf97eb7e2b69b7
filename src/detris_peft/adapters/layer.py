"""The layer that both tuners share: a module of the backbone with adapters beside it.

The branch is not linear, holds BatchNorm statistics and needs a second input besides what the MLP gets. So:

- The second input is carried from an earlier module of the same block by a persistent pre-hook (`_HandOver`). The
  hook sits on a module *inside* the block, so it runs again when gradient checkpointing recomputes the block.
- BatchNorm statistics follow the adapter: still when it is frozen, moved once a step under checkpointing.
- The branch cannot be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

NOT_MERGEABLE = (
    "This adapter cannot be merged into the backbone's weights: its branch (convolutions, ReLU, attention) is not a "
    "linear map. Keep it beside the backbone, or take it off with `unload()`."
)


class ParallelAdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone with adapters beside it: `base(x) + Σ scale · branch(x, handed over)`.

    Subclasses name the `ModuleDict` of branches in `adapter_layer_names` and build a branch in `make_branch`.
    """

    other_param_names = ("scale",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale: dict[str, float] = {}
        self.handed_over: Any = None  # set by the hook, taken by this layer's very next call
        self.input_hook: torch.utils.hooks.RemovableHandle | None = None
        self.merged_adapters = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())

    @property
    def branches(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    @property
    def width(self) -> int:
        """Width C of the residual stream: what the last linear layer of the wrapped module gives."""
        return [m for m in self.base_layer.modules() if isinstance(m, nn.Linear)][-1].out_features

    # What a subclass says about its branch

    @staticmethod
    def pick_input(args: tuple, kwargs: dict) -> Any:
        """Take the adapter's second input out of a call of the block's `input_module`."""
        raise NotImplementedError

    def make_branch(self, config: Any) -> nn.Module:
        raise NotImplementedError

    def check_input(self, hidden_states: torch.Tensor, handed_over: Any) -> tuple:
        """Return what the branch takes; raise if the second input is missing or does not fit."""
        raise NotImplementedError

    # Adding an adapter

    def listen_to(self, source: nn.Module) -> None:
        """Take the second input from the calls of `source`, a module earlier in the block."""
        self.input_hook = source.register_forward_pre_hook(_HandOver(self.pick_input, self), with_kwargs=True)

    def update_layer(self, adapter_name: str, config: Any, inference_mode: bool = False) -> None:
        branch = self.make_branch(config)
        check_adapter_name(adapter_name, *branch.state_dict())
        self.branches[adapter_name] = branch
        self.scale[adapter_name] = config.scale
        super()._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft calls this for weights just loaded, and would round them to the precision of the backbone.
        if adapter_name in self.branches:
            self.branches[adapter_name].to(device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0])

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        # peft looks for a `weight`; an MLP has several. The dtype is that of its first floating weight, so that a
        # quantised one does not count.
        first = next((p for p in base_layer.parameters() if p.is_floating_point()), next(base_layer.parameters()))
        return first.device, first.dtype

    def cast_branch(self, adapter_name: str, autocast_adapter_dtype: bool) -> None:
        """Weights and running statistics in one precision: as peft has set it, or the backbone's."""
        branch = self.branches[adapter_name]
        dtype = next(branch.parameters()).dtype
        if not autocast_adapter_dtype:
            base_dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())[1]
            dtype = base_dtype if base_dtype.is_floating_point else dtype
        branch.to(dtype)

    # Running

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        handed_over, self.handed_over = self.handed_over, None
        result = self.base_layer(hidden_states, *args, **kwargs)
        if self.disable_adapters:
            return result
        if adapter_names is not None:
            return self._mixed_batch(hidden_states, handed_over, adapter_names, result)
        for name in self.active_adapters:
            if name in self.branches:
                delta = self._run_branch(name, *self.check_input(hidden_states, handed_over))
                result = torch.add(result, delta.to(result.dtype), alpha=self.scale[name])
        return result

    def _mixed_batch(
        self, hidden_states: torch.Tensor, handed_over: Any, adapter_names: list[str], result: torch.Tensor
    ) -> torch.Tensor:
        """Each row of the batch through its own adapter; `"__base__"` rows through none."""
        if len(adapter_names) != len(hidden_states):
            raise ValueError(
                f"adapter_names has {len(adapter_names)} entries for a batch of {len(hidden_states)}: give one a row."
            )
        names = sorted(set(adapter_names) & set(self.branches))
        inputs = self.check_input(hidden_states, handed_over) if names else ()
        for name in names:
            rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=result.device)
            delta = self._run_branch(name, *(x[rows] if isinstance(x, torch.Tensor) else x for x in inputs))
            result = result.index_add(0, rows, delta.to(result.dtype), alpha=self.scale[name])
        return result

    def _run_branch(self, name: str, *inputs: Any) -> torch.Tensor:
        branch = self.branches[name]
        self._hold_if_frozen(branch)
        dtype = next(branch.parameters()).dtype
        inputs = tuple(self._cast_input_dtype(x, dtype) if isinstance(x, torch.Tensor) else x for x in inputs)
        with _statistics_put_aside(branch) if is_recomputing() else nullcontext():
            return branch(*inputs)

    # Freezing: dropout and running statistics of a frozen adapter do not move, whatever `.train()` says.

    def train(self, mode: bool = True) -> ParallelAdapterLayer:
        super().train(mode)
        for branch in self.branches.values():
            self._hold_if_frozen(branch)
        return self

    def _hold_if_frozen(self, branch: nn.Module) -> None:
        # Asked again at each call: there are many ways to freeze a parameter, and peft itself unfreezes some late.
        trained = self.training and any(p.requires_grad for p in branch.parameters())
        if branch.training != trained:
            branch.train(trained)

    # Taking off, and merging, which is refused

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The wrapped module as it was; peft's name for it."""
        if merge:
            self.merge(safe_merge, adapter_names)
        if self.input_hook is not None:
            self.input_hook.remove()
        return self.base_layer

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def check_adapter_name(name: str, *keys: str) -> None:
    """Refuse a name that stands in a key: saving *another* adapter, peft leaves out every key with this name in it."""
    if any(name in key.split(".") for key in keys):
        raise ValueError(f"An adapter cannot be named {name!r}, as a module here is: give it another name.")


class _HandOver:
    """Forward pre-hook that carries a block's second input to the adapter in the same block.

    A class, not a closure: it survives `deepcopy` and pickling together with the modules it connects.
    """

    def __init__(self, pick: Callable[[tuple, dict], Any], layer: ParallelAdapterLayer) -> None:
        self.pick, self.layer = pick, layer

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self.layer.handed_over = self.pick(args, kwargs)
        return args, kwargs


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward: gradient checkpointing's second pass over a block."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def _statistics_put_aside(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm move copies of its running statistics, which are then forgotten.

    Copies and not none at all: checkpointing counts the tensors that the recomputation saves.
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
