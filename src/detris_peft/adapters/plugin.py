"""What both tuners share, and the one place that touches peft's registries.

An adapter of this library runs *beside* a module (the MLP of a transformer block) and adds a scaled branch to its
output. Unlike LoRA's, the branch is not linear, holds BatchNorm statistics and needs a second input besides what the
MLP gets. Three consequences shape this file:

- The second input is carried from an earlier module of the same block by a persistent pre-hook (`_HandOver`). The
  hook sits on a module *inside* the block, so it runs again when gradient checkpointing recomputes the block.
- BatchNorm statistics follow the adapter: saved with it, still when it is frozen, moved once a step under
  checkpointing.
- The branch cannot be merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import nn

from .backbones import BLOCK_LIST, BlockLayout


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Make `name` a peft type, once; harmless if repeated (a reload, two imports of the package).

    `register_peft_method` asks for a member of the `PeftType` enum, and peft offers no way to add one.
    """
    member_name = name.upper()
    if member_name not in PeftType.__members__:
        member = str.__new__(PeftType, member_name)
        member._name_ = member._value_ = member_name
        type.__setattr__(PeftType, member_name, member)
        PeftType._member_names_.append(member_name)
        PeftType._member_map_[member_name] = member
        PeftType._value2member_map_[member_name] = member
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


# -- configuration --------------------------------------------------------------------------------------------------

DEFAULT_LAYERS = (1, 3, 5, 7, 9, 11)


@dataclass
class ParallelAdapterConfig(PeftConfig):
    """Fields that both adapters have.

    Args:
        dim: bottleneck width D, a multiple of 16 (D-MoC's narrowest branch has D/16 channels).
        layers_to_transform: blocks that get an adapter, counted from 0. Leave it out when `target_modules` is a
            regular expression, which names the blocks itself.
        scale: factor of the branch's output before it is added to the MLP's.
        init_weights: `"paper"`, or `"identity"`: the up-projection starts at zero, so that the adapted backbone
            equals the plain one until the first step.
        target_modules: modules to put the adapter beside, as names or a regular expression; known backbones need none.
        exclude_modules: modules to leave out, as names or a regular expression.
        layers_pattern: name of the module list of blocks; known backbones need none.
        input_module: for backbones that `detris_peft.adapters.backbones` does not list: the module in a block that
            meets the adapter's second input, by its name relative to the block.
        modules_to_save: further modules of the backbone to train and save whole.

    Raises:
        ValueError: a field does not fit; the message names it and says what would.
    """

    dim: int = 64
    layers_to_transform: list[int] | int | None = field(default_factory=lambda: list(DEFAULT_LAYERS))
    scale: float = 0.2  # not given in the paper; the released implementation's value
    init_weights: str = "paper"
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_pattern: list[str] | str | None = None
    input_module: str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.dim < 16 or self.dim % 16:
            raise ValueError(f"dim={self.dim} must be a positive multiple of 16: D-MoC divides it by 16.")
        if self.init_weights not in ("paper", "identity"):
            raise ValueError(f'init_weights={self.init_weights!r} is not known: use "paper" or "identity".')
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if isinstance(self.target_modules, str):
            # The regular expression is the whole answer; only a list that somebody chose contradicts it.
            if layers is not None and list(_as_list(layers)) != list(DEFAULT_LAYERS):
                raise ValueError(
                    f"layers_to_transform={layers} has no effect beside the regular expression "
                    f"target_modules={self.target_modules!r}: name the blocks in one of the two."
                )
            self.layers_to_transform = None
        elif layers is not None:
            layers = _as_list(layers)
            if not layers or any(not isinstance(i, int) or i < 0 for i in layers):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform} must name at least one block, counted from 0; "
                    "for a model without this adapter leave the adapter out."
                )


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


# -- layer ----------------------------------------------------------------------------------------------------------


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
def _without_running_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch but leave the running statistics alone (SyncBatchNorm included)."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class ParallelAdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone with adapters beside it: `base(x) + Σ scale · branch(x, handed over)`.

    Subclasses name the `ModuleDict` of branches in `adapter_layer_names` and build a branch in `make_branch`.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale: dict[str, float] = {}
        self.handed_over: Any = None  # set by the hook, taken by this layer's very next call
        self.input_hook: torch.utils.hooks.RemovableHandle | None = None
        self.merged_adapters = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())

    other_param_names = ("scale",)

    @property
    def branches(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    @property
    def width(self) -> int:
        """Width C of the residual stream: what the last linear layer of the wrapped module gives."""
        return [m for m in self.base_layer.modules() if isinstance(m, nn.Linear)][-1].out_features

    @staticmethod
    def pick_input(args: tuple, kwargs: dict) -> Any:
        """Take the adapter's second input out of a call of the block's `input_module`."""
        raise NotImplementedError

    def make_branch(self, config: Any) -> nn.Module:
        raise NotImplementedError

    def check_input(self, hidden_states: torch.Tensor, handed_over: Any) -> Any:
        """Return the second input as the branch takes it; raise if it is missing or does not fit."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, config: Any, inference_mode: bool = False) -> None:
        self.scale[adapter_name] = config.scale
        self.branches[adapter_name] = self.make_branch(config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

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
                inputs = self.check_input(hidden_states, handed_over)
                delta = self._run_branch(name, hidden_states, *inputs)
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
            picked = [x[rows] if isinstance(x, torch.Tensor) else x for x in (hidden_states, *inputs)]
            delta = self._run_branch(name, *picked) * self.scale[name]
            result = result.index_add(0, rows, delta.to(result.dtype))
        return result

    def _run_branch(self, name: str, *inputs: Any) -> torch.Tensor:
        branch = self.branches[name]
        dtype = next(branch.parameters()).dtype
        inputs = tuple(self._cast_input_dtype(x, dtype) if isinstance(x, torch.Tensor) else x for x in inputs)
        keep = _without_running_statistics(branch) if self.training and is_recomputing() else nullcontext()
        with keep:
            return branch(*inputs)

    # Freezing. Dropout and the running statistics of a frozen adapter must not move, whatever `.train()` says.

    def train(self, mode: bool = True) -> ParallelAdapterLayer:
        super().train(mode)
        self._hold_frozen_branches()
        return self

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self._hold_frozen_branches()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        self._hold_frozen_branches()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        self._hold_frozen_branches()

    def _hold_frozen_branches(self) -> None:
        for branch in self.branches.values():
            trained = any(p.requires_grad for p in branch.parameters())
            branch.train(self.training and trained)

    # Placement

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        # peft looks for a `weight`; an MLP has several. The dtype is that of its first floating weight, so that a
        # quantised one does not count.
        floating = [p for p in base_layer.parameters() if p.is_floating_point()]
        first = floating[0] if floating else next(base_layer.parameters(), None)
        return (None, None) if first is None else (first.device, first.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


NOT_MERGEABLE = (
    "This adapter cannot be merged into the backbone's weights: its branch (convolutions, ReLU, attention) is not a "
    "linear map. Keep it beside the backbone, or take it off with `unload()`."
)


# -- model ----------------------------------------------------------------------------------------------------------


class ParallelAdapterModel(BaseTuner):
    """Puts `layer_cls` beside the MLP of the chosen blocks of a backbone.

    Subclasses name the layer class, the prefix of its parameters, and the table of known backbones.
    """

    tuner_layer_cls: type[ParallelAdapterLayer]
    layouts: ClassVar[dict[str, BlockLayout]]
    second_input: ClassVar[str]  # what it is, for messages
    target_module_mapping: ClassVar[dict] = {}  # `layouts` says more than peft's mapping can hold

    # Finding the modules

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        known = self.layouts.get(model_config.get("model_type", ""))
        if known is None and (peft_config.target_modules is None or peft_config.input_module is None):
            raise ValueError(
                f"{type(self).__name__} does not know the backbone type {model_config.get('model_type')!r} (known: "
                f"{', '.join(self.layouts)}). Pass target_modules (the MLP of a block) and input_module (the module of "
                f"a block that gets {self.second_input}) in the config."
            )
        if known is not None:
            peft_config.target_modules = peft_config.target_modules or {known.mlp}
            peft_config.input_module = peft_config.input_module or known.input_module
            peft_config.layers_pattern = peft_config.layers_pattern or BLOCK_LIST
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Refuse blocks that do not exist before any module has been touched."""
        wanted = peft_config.layers_to_transform
        if wanted is None:
            return
        present = {int(m.group(2)) for key, _ in model.named_modules() if (m := self._block_of(key, peft_config))}
        missing = sorted(set(_as_list(wanted)) - present)
        if present and missing:
            raise ValueError(
                f"layers_to_transform names block {', '.join(map(str, missing))}, but {type(model).__name__} has "
                f"blocks {min(present)} to {max(present)}: blocks count from 0."
            )

    @staticmethod
    def _block_of(key: str, config: Any) -> re.Match[str] | None:
        """Split a module name into (path of the block, index of the block), or None outside the blocks."""
        patterns = "|".join(_as_list(config.layers_pattern)) if config.layers_pattern else r"[^.]+"
        return re.match(rf"((?:.*?\.)?(?:{patterns})\.(\d+))(?:\.|$)", key)

    # Placing the layers

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
            return
        layer = self.tuner_layer_cls(target)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an adapter added to others is not trained until it is set
        layer.train(target.training)
        source = self._input_module(peft_config, current_key)
        layer.input_hook = source.register_forward_pre_hook(_HandOver(layer.pick_input, layer), with_kwargs=True)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own copies `weight` and `bias` over, which an MLP does not have.
        setattr(parent, child_name, new_module)

    def _input_module(self, config: Any, key: str) -> nn.Module:
        block = self._block_of(key, config)
        name = f"{block.group(1)}.{config.input_module}" if block else config.input_module
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"There is no module {name!r} to hand {self.second_input} to the adapter at {key!r}: set input_module "
                "to the name, within a block, of a module that gets it."
            ) from None

    def _unload_and_optionally_merge(self, *args: Any, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        layers = [m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls)]
        model = super()._unload_and_optionally_merge(*args, merge=merge, **kwargs)
        for layer in layers:
            if layer.input_hook is not None:
                layer.input_hook.remove()
        return model

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        # peft casts parameters only; BatchNorm wants its running statistics in the same precision.
        for layer in self.model.modules():
            if isinstance(layer, self.tuner_layer_cls) and adapter_name in layer.branches:
                branch = layer.branches[adapter_name]
                dtype = next(branch.parameters()).dtype
                for name, buffer in list(branch.named_buffers()):
                    if buffer.is_floating_point():
                        owner, _, leaf = name.rpartition(".")
                        setattr(branch.get_submodule(owner), leaf, buffer.to(dtype))

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the weights of two adapters with convolutions and ReLU between them cannot be averaged."""
        raise ValueError(
            "add_weighted_adapter is not possible: the branches are not linear in their weights. Activate several "
            "adapters with `set_adapter([...])`, which adds their outputs."
        )

    # Saving and loading

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft takes the name off the end of a key only; here it stands in front of a nested module
        # (`...branch.<name>.down.weight`). Left in, a load under another name would find nothing and say nothing.
        container = f".{cls.tuner_layer_cls.adapter_layer_names[0]}."
        head, found, tail = key.rpartition(container)
        if not found:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return head + container + tail.removeprefix(f"{adapter_name}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Strict, unlike peft's own: a key left over, missing or of another shape means the wrong adapter."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        container = f".{cls.tuner_layer_cls.adapter_layer_names[0]}."
        expected = {
            f"{module_name}{container}{adapter_name}.{key}": value
            for module_name, module in model.named_modules()
            if isinstance(module, cls.tuner_layer_cls) and adapter_name in module.branches
            for key, value in module.branches[adapter_name].state_dict().items()
        }
        given = {k: v for k, v in remapped.items() if container in k}
        missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(
                f"The weights do not belong to adapter {adapter_name!r} on this backbone: {len(missing)} missing "
                f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}. Load them over the backbone and with "
                "the config they were trained with."
            )
        for key, value in given.items():
            if value.shape != expected[key].shape:
                raise ValueError(
                    f"The weights of adapter {adapter_name!r} do not fit this backbone: {key} is "
                    f"{tuple(value.shape)} in the file, {tuple(expected[key].shape)} here. Load them over a backbone "
                    "of the width they were trained with."
                )
        return remapped

    # Mixed batches

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give `adapter_names` of `PeftModel.forward` to every layer, for this call only."""
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names is for inference: call `.eval()` first, or train one adapter at a time.")
        unknown = set(adapter_names) - set(self.peft_config) - {"__base__"}
        if unknown:
            raise ValueError(
                f"adapter_names has {', '.join(sorted(unknown))}; this model has {', '.join(self.peft_config)} and "
                '"__base__".'
            )
        layers = [m for m in self.modules() if isinstance(m, self.tuner_layer_cls)]
        hook = partial(_add_adapter_names, adapter_names=adapter_names)
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict, *, adapter_names: list[str]
) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}
