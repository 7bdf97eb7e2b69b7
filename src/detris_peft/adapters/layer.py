"""The layer shared by all adapters: a backbone module to whose output the outputs of branches are added.

A branch is nonlinear and may contain BatchNorm. Therefore:

- It cannot be merged.
- BatchNorm running statistics are frozen with the adapter and updated once per step under gradient checkpointing.
- What belongs to a call (the names of a mixed batch) is stored per thread, in `CallState`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..running_statistics import discard_statistics_updates

NOT_MERGEABLE = (
    "This adapter cannot be merged into the backbone's weights: its branch is nonlinear. Keep the adapter attached, "
    "or remove it with `unload()`."
)


class CallState(threading.local):
    """Values of the running forward call, separate for each thread."""

    adapter_names: list[str] | None = None
    second_input: Any = None  # of a parallel adapter

    def __reduce__(self) -> tuple:
        # The values belong to a call, so copies and pickles start without any.
        return type(self), ()


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A backbone module with adapter branches: `base(x) + Σ scale · branch(...)`, summed over the active adapters.

    Subclasses name the `ModuleDict` of branches in `adapter_layer_names`, and implement `make_branch` and `forward`.
    """

    other_param_names = ("scale", "initial_sum")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale: dict[str, float] = {}
        self.initial_sum: dict[str, float] = {}
        self.call_state = CallState()
        self.merged_adapters = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())

    @property
    def branches(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    @property
    def width(self) -> int:
        """Width C of the residual stream: the output size of the wrapped module's last linear layer."""
        linear = [m for m in self.get_base_layer().modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise ValueError(
                f"target_modules: expected a module with a linear layer, got a {type(self.base_layer).__name__}; "
                "target the MLP of a block."
            )
        return linear[-1].out_features

    def make_branch(self, config: Any) -> nn.Module:
        """Return a new branch for an adapter config."""
        raise NotImplementedError

    def new_branch(self, config: Any) -> nn.Module:
        """Return a new branch, with the parameter of its scale if that is trained."""
        branch = self.make_branch(config)
        if config.learn_scale:
            # (1,) rather than a scalar, which FSDP does not shard.
            branch.scale_logit = nn.Parameter(torch.logit(torch.tensor([float(config.scale)])))
        return branch

    # Adding an adapter

    def update_layer(self, adapter_name: str, config: Any, inference_mode: bool = False) -> None:
        """Add an adapter (method name required by peft)."""
        self.branches[adapter_name] = self.new_branch(config)
        self.scale[adapter_name] = config.scale
        super()._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft calls this after loading weights; its own version would also cast them to the backbone's dtype.
        if adapter_name in self.branches:
            self.branches[adapter_name].to(device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0])

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        # peft expects a `weight`, but an MLP has several: use the first floating-point (not quantized) one.
        first = next((p for p in base_layer.parameters() if p.is_floating_point()), next(base_layer.parameters()))
        return execution_device(base_layer), first.dtype

    def cast_branch(self, adapter_name: str, autocast_adapter_dtype: bool) -> None:
        """Cast parameters and buffers of a branch to a single dtype: peft's choice, or the backbone's."""
        branch = self.branches[adapter_name]
        dtype = next(branch.parameters()).dtype
        if not autocast_adapter_dtype:
            base_dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())[1]
            dtype = base_dtype if base_dtype.is_floating_point else dtype
        branch.to(dtype)

    # Adapters whose weights are still the random initial ones: a refused load removes them

    def weight_sum(self, adapter_name: str) -> float:
        """Return the sum of a branch's weights, from which `is_initial` sees whether they have changed."""
        return float(sum(p.detach().double().sum() for p in self.branches[adapter_name].parameters()))

    def mark_initial(self, adapter_name: str) -> None:
        """Record that an adapter has its random initial weights."""
        if not any(p.is_meta for p in self.branches[adapter_name].parameters()):
            self.initial_sum[adapter_name] = self.weight_sum(adapter_name)

    def is_initial(self, adapter_name: str) -> bool:
        """Return whether the weights of an adapter were never loaded or trained."""
        if any(p.is_meta for p in self.branches[adapter_name].parameters()):
            return True
        return self.initial_sum.get(adapter_name) == self.weight_sum(adapter_name)

    # Forward

    def add_branches(self, result: torch.Tensor, make_inputs: Callable[[], tuple]) -> torch.Tensor:
        """Add the outputs of the active adapters to the output of the wrapped module.

        Args:
            result: output of the wrapped module (B, ..., C).
            make_inputs: returns the arguments of the branches. It is called only if there is an adapter to run.
        """
        if self.disable_adapters:
            return result
        adapter_names = self.call_state.adapter_names
        if adapter_names is not None:
            return self._add_mixed_batch(result, make_inputs, adapter_names)
        names = [name for name in self.active_adapters if name in self.branches]
        inputs = make_inputs() if names else ()
        for name in names:
            delta, scale = self._scaled(name, self._run_branch(name, *inputs))
            result = torch.add(result, delta.to(result.dtype), alpha=scale)
        return result

    def _add_mixed_batch(
        self, result: torch.Tensor, make_inputs: Callable[[], tuple], adapter_names: list[str]
    ) -> torch.Tensor:
        """Run each sample of the batch through its own adapter; `"__base__"` samples through none."""
        if len(adapter_names) != len(result):
            raise ValueError(f"adapter_names: expected {len(result)} names, one per sample, got {len(adapter_names)}.")
        names = sorted(set(adapter_names) & set(self.branches))
        inputs = make_inputs() if names else ()
        for name in names:
            rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=result.device)
            delta = self._run_branch(name, *(x[rows] if isinstance(x, torch.Tensor) else x for x in inputs))
            delta, scale = self._scaled(name, delta)
            result = result.index_add(0, rows, delta.to(result.dtype), alpha=scale)
        return result

    def _scaled(self, name: str, delta: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the output of a branch and the factor with which it is added."""
        logit = getattr(self.branches[name], "scale_logit", None)
        return (delta, self.scale[name]) if logit is None else (delta * logit.sigmoid().to(delta.dtype), 1.0)

    def _run_branch(self, name: str, *inputs: Any) -> torch.Tensor:
        branch = self.branches[name]
        if not getattr(self, "_is_replica", False):
            self._sync_training_mode(branch)
        dtype = _dtype(branch)
        inputs = tuple(self._cast_input_dtype(x, dtype) if isinstance(x, torch.Tensor) else x for x in inputs)
        with discard_statistics_updates(branch) if is_recomputing() else nullcontext():
            return branch(*inputs)

    # Training mode: a frozen adapter stays in eval mode (dropout, running statistics) even after `.train()`.

    def train(self, mode: bool = True) -> AdapterLayer:
        super().train(mode)
        for branch in self.branches.values():
            self._sync_training_mode(branch)
        return self

    def _sync_training_mode(self, branch: nn.Module) -> None:
        # Checked on every call: requires_grad may be changed at any time, and peft itself does so after injection.
        trained = self.training and any(p.requires_grad for p in branch.parameters())
        if branch.training != trained:
            branch.train(trained)

    def _replicate_for_data_parallel(self) -> AdapterLayer:
        # Replicas copy the mode of the branches. They cannot determine it: they have no parameters, only attributes.
        for branch in self.branches.values():
            self._sync_training_mode(branch)
        return super()._replicate_for_data_parallel()  # type: ignore[misc]

    # Unloading; merging is not supported

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the original module (method name required by peft)."""
        if merge:
            self.merge(safe_merge, adapter_names)
        return self.base_layer

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def extra_repr(self) -> str:
        learned = {name for name, branch in self.branches.items() if hasattr(branch, "scale_logit")}
        scale = {name: f"learned, initially {s}" if name in learned else s for name, s in self.scale.items()}
        return f"scale={scale}"


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which a module runs: not the meta device, where accelerate keeps offloaded weights."""
    device = next(module.parameters()).device
    hooks = [hook for m in module.modules() if (hook := getattr(m, "_hf_hook", None)) is not None]
    devices = [getattr(h, "execution_device", None) for hook in hooks for h in getattr(hook, "hooks", [hook])]
    found = next((candidate for candidate in devices if candidate is not None), None)
    return device if found is None or device.type != "meta" else torch.device(found)


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first parameter, also for a replica of `nn.DataParallel`."""
    return next(
        p.dtype
        for m in module.modules()
        for p in (*m._parameters.values(), *getattr(m, "_former_parameters", {}).values())
        if p is not None
    )


def is_recomputing() -> bool:
    """Return whether this forward pass runs inside a backward pass: gradient checkpointing recomputes a block."""
    if torch.compiler.is_compiling():
        return False
    graph_task_id = getattr(torch._C, "_current_graph_task_id", None)  # private: PyTorch has no public equivalent
    return _in_checkpoint_frame() if graph_task_id is None else graph_task_id() != -1


def _in_checkpoint_frame() -> bool:
    """Return whether the call stack contains a recomputation by PyTorch's checkpointing: slow, without torch._C."""
    recomputing, frame = ("unpack_hook", "backward"), sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename == torch.utils.checkpoint.__file__ and code.co_name in recomputing:
            return True
        frame = frame.f_back
    return False
