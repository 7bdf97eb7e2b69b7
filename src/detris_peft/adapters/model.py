"""The tuner model shared by all adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .block_layouts import ANY_LIST, BLOCK_LIST, BlockLayout
from .config import ParallelAdapterConfig, as_list, names_a_block
from .layer import NOT_MERGEABLE, ParallelAdapterLayer, check_adapter_name


class ParallelAdapterModel(BaseTuner):
    """Puts `tuner_layer_cls` beside the MLP of the chosen blocks of a backbone.

    Subclasses name the classes of layer and config, the prefix of the parameters, and the table of known backbones.

    Another tuner may sit in the same backbone: wrap it twice, under two names, LoRA first. Each wrap trains, saves
    and loads its own.

    Example:
        >>> lora = get_peft_model(backbone, LoraConfig(target_modules=["q_proj", "v_proj"]), adapter_name="lora")
        >>> both = get_peft_model(lora.get_base_model(), DenseAlignerConfig(), adapter_name="aligner")
        >>> both.disable_adapter()  # leaves LoRA on; `lora.base_model.set_adapter([])` switches LoRA alone off
        >>> both.save_pretrained(folder, selected_adapters=["aligner"])
    """

    tuner_layer_cls: type[ParallelAdapterLayer]
    config_cls: ClassVar[type[ParallelAdapterConfig]]
    layouts: ClassVar[dict[str, BlockLayout]]
    second_input: ClassVar[str]  # what it is, for messages
    target_module_mapping: ClassVar[dict] = {}  # `layouts` says more than peft's mapping can hold

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # A second peft wrap shares the dictionary of the first, where a config of the same name would be lost.
        taken = getattr(model, "peft_config", {})
        if adapter_name in taken:
            raise ValueError(
                f"{type(model).__name__} already carries an adapter named {adapter_name!r} "
                f"({taken[adapter_name].peft_type.value}): give this one another name with adapter_name=..."
            )
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    @property
    def _adapted_layers(self) -> list[ParallelAdapterLayer]:
        return [m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls)]

    # Finding the modules

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        known = self.layouts.get(model_config.get("model_type", ""))
        if known is None and (peft_config.target_modules is None or peft_config.input_module is None):
            raise ValueError(
                f"{type(self).__name__} does not know the backbone type {model_config.get('model_type')!r} (known: "
                f"{', '.join(self.layouts)}): pass target_modules (the MLP of a block) and input_module (the module "
                f"of a block that gets {self.second_input}) in the config."
            )
        if known is not None:
            peft_config.target_modules = peft_config.target_modules or {known.mlp}
            peft_config.input_module = peft_config.input_module or known.input_module
        peft_config.layers_pattern = peft_config.layers_pattern or (BLOCK_LIST if known else ANY_LIST)
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Refuse blocks that do not exist before any module has been touched."""
        wanted = peft_config.layers_to_transform
        if wanted is None:
            return
        blocks = {m.group(2) for key, _ in model.named_modules() if (m := peft_config.block_of(key))}
        present = sorted(map(int, blocks))
        missing = sorted(set(as_list(wanted)) - set(present))
        if present and missing:
            raise ValueError(
                f"layers_to_transform names block {', '.join(map(str, missing))}, but {type(model).__name__} has "
                f"blocks {present[0]} to {present[-1]}: blocks count from 0."
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        """As in peft, except that `["output.dense"]` does not mean a block's `attention.output.dense` too."""
        found = BaseTuner._check_target_module_exists(peft_config, key)
        targets = peft_config.target_modules
        if not found or isinstance(targets, str) or key in targets:
            return found
        block = peft_config.block_of(key)
        within = key.removeprefix(f"{block.group(1)}.") if block else None
        return within in targets or any(names_a_block(name) and key.endswith(f".{name}") for name in targets)

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
        check_adapter_name(adapter_name, current_key)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
            return
        source = self._input_module(peft_config, current_key)
        layer = self.tuner_layer_cls(target)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
        layer.train(target.training)
        layer.listen_to(source)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own copies `weight` and `bias` over, which an MLP does not have.
        setattr(parent, child_name, new_module)

    def _input_module(self, config: Any, key: str) -> nn.Module:
        block = config.block_of(key)
        name = f"{block.group(1)}.{config.input_module}" if block else config.input_module
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"There is no module {name!r} to hand {self.second_input} to the adapter at {key!r}: set input_module "
                "to the name, within a block, of a module that gets it."
            ) from None

    # Switching and taking off: only what is ours, another tuner (LoRA) may sit in the same backbone.

    def _own_adapters(self) -> set[str]:
        return {name for name, config in self.peft_config.items() if isinstance(config, self.config_cls)}

    def _own_modules(self) -> list[tuple[str, Any]]:
        """The adapted modules and those of `modules_to_save`, by name."""
        own = self._own_adapters()
        return [
            (key, module)
            for key, module in self.model.named_modules()
            if isinstance(module, self.tuner_layer_cls)
            or (isinstance(module, AuxiliaryTrainingWrapper) and module._get_available_adapters() & own)
        ]

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for _, module in self._own_modules():
            module.enable_adapters(enabled)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
        for key, module in self._own_modules():
            self.model.set_submodule(key, module.unload_and_optionally_merge_module(False, False, None))
        for name in self._own_adapters():
            del self.peft_config[name]
        if not self.peft_config:
            del self.model.peft_config
        return self.model

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self._adapted_layers:
            if adapter_name in layer.branches:
                layer.cast_branch(adapter_name, autocast_adapter_dtype)

    # Refused

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the weights of two adapters with convolutions and ReLU between them cannot be averaged."""
        raise ValueError(
            "add_weighted_adapter is not possible: the branches are not linear in their weights. Activate several "
            "adapters with `base_model.set_adapter([...])`, which adds their outputs."
        )

    # Saving and loading

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft takes the name off the end of a key only; here it stands in front of a nested module
        # (`...branches.<name>.down.weight`). Left in, a load under another name would find nothing and say nothing.
        container = f".{cls.tuner_layer_cls.adapter_layer_names[0]}."
        head, found, tail = key.rpartition(container)
        if not found:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        # A wrap around a wrap (LoRA's) repeats the prefix: the file must fit the backbone without LoRA too.
        head = re.sub(r"^(base_model\.model\.)+", "base_model.model.", head)
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
        known = self._own_adapters()
        unknown = set(adapter_names) - known - {"__base__"}
        if unknown:
            raise ValueError(
                f"adapter_names has {', '.join(sorted(unknown))}; this model has {', '.join(sorted(known))} and "
                '"__base__".'
            )
        hook = partial(_add_adapter_names, adapter_names=adapter_names)
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self._adapted_layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict, *, adapter_names: list[str]
) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}
