"""The tuner model shared by all adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .block_layouts import ANY_LIST, BLOCK_LIST, BlockLayout
from .config import ParallelAdapterConfig, as_list, has_block_index
from .layer import NOT_MERGEABLE, ParallelAdapterLayer, check_adapter_name


class ParallelAdapterModel(BaseTuner):
    """Inject `tuner_layer_cls` in parallel with the MLPs of the selected blocks.

    Subclasses set the layer and config classes, the prefix of the parameters, and the table of known backbones.

    Another tuner may share the backbone: wrap it twice, under two names, LoRA first. Each wrapper trains, saves and
    loads its own adapters.

    Example:
        >>> lora = get_peft_model(backbone, LoraConfig(target_modules=["q_proj", "v_proj"]), adapter_name="lora")
        >>> both = get_peft_model(lora.get_base_model(), DenseAlignerConfig(), adapter_name="aligner")
        >>> with both.disable_adapter():  # LoRA stays enabled; `lora.base_model.set_adapter([])` disables LoRA only
        ...     outputs = both(pixel_values)
        >>> both.save_pretrained(folder, selected_adapters=["aligner"])
    """

    tuner_layer_cls: type[ParallelAdapterLayer]
    config_cls: ClassVar[type[ParallelAdapterConfig]]
    layouts: ClassVar[dict[str, BlockLayout]]
    second_input: ClassVar[str]  # its description in error messages
    target_module_mapping: ClassVar[dict] = {}  # `layouts` replaces peft's mapping

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # A second peft wrapper shares the dictionary of the first: a config of the same name would be overwritten.
        taken = getattr(model, "peft_config", {})
        if adapter_name in taken:
            raise ValueError(
                f"adapter_name={adapter_name!r}: expected a new name, {type(model).__name__} already has an adapter "
                f"with this name ({taken[adapter_name].peft_type.value}); pass another adapter_name."
            )
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    @property
    def _adapted_layers(self) -> list[ParallelAdapterLayer]:
        return [m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls)]

    # Selecting modules

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
        peft_config.layers_pattern = peft_config.layers_pattern or (BLOCK_LIST if known else ANY_LIST)
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Raise a ValueError for blocks that do not exist, before any module is changed."""
        wanted = peft_config.layers_to_transform
        if wanted is None:
            return
        blocks = {m.group(2) for key, _ in model.named_modules() if (m := peft_config.match_block(key))}
        present = sorted(map(int, blocks))
        missing = sorted(set(as_list(wanted)) - set(present))
        if present and missing:
            raise ValueError(
                f"layers_to_transform: expected blocks {present[0]} to {present[-1]} of {type(model).__name__}, "
                f"counted from 0, got {', '.join(map(str, missing))}."
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        """Match as peft does, except that `["output.dense"]` does not match a block's `attention.output.dense`."""
        found = BaseTuner._check_target_module_exists(peft_config, key)
        targets = peft_config.target_modules
        if not found or isinstance(targets, str) or key in targets:
            return found
        block = peft_config.match_block(key)
        within = key.removeprefix(f"{block.group(1)}.") if block else None
        return within in targets or any(has_block_index(name) and key.endswith(f".{name}") for name in targets)

    # Injecting layers

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
        layer.register_input_hook(source)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own version copies `weight` and `bias`, which an MLP does not have.
        setattr(parent, child_name, new_module)

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

    # Enabling, disabling and unloading affect only our own adapters: another tuner (LoRA) may share the backbone.

    def _own_adapters(self) -> set[str]:
        return {name for name, config in self.peft_config.items() if isinstance(config, self.config_cls)}

    def _own_modules(self) -> list[tuple[str, Any]]:
        """Return the adapted modules and those of `modules_to_save`, with their names."""
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

    # Not supported

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError: the weights of two nonlinear branches cannot be combined."""
        raise ValueError(
            "add_weighted_adapter is not supported: the branches are nonlinear. To add the outputs of several "
            "adapters, activate them with `base_model.set_adapter([...])`."
        )

    # Saving and loading

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft removes the name only at the end of a key; here it comes before a nested module
        # (`...branches.<name>.down.weight`). Otherwise loading under a different name would silently load nothing.
        container = f".{cls.tuner_layer_cls.adapter_layer_names[0]}."
        head, found, tail = key.rpartition(container)
        if not found:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        # Nested PeftModel wrappers (around LoRA) repeat the prefix; the file must also fit the backbone without LoRA.
        head = re.sub(r"^(base_model\.model\.)+", "base_model.model.", head)
        return head + container + tail.removeprefix(f"{adapter_name}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Check keys and shapes strictly, unlike peft: a mismatch means the wrong adapter."""
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
                f"The weights do not fit adapter {adapter_name!r} on this backbone: {len(missing)} missing "
                f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}; load them with the backbone and the "
                "config that they were trained with."
            )
        for key, value in given.items():
            if value.shape != expected[key].shape:
                raise ValueError(
                    f"The weights of adapter {adapter_name!r} do not fit this backbone: expected "
                    f"{tuple(expected[key].shape)} for {key}, got {tuple(value.shape)}; load them over a backbone of "
                    "the same width as in training."
                )
        return remapped

    # Mixed batches

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pass `adapter_names` of `PeftModel.forward` to every layer, for this call only."""
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError(
                "adapter_names: expected a model in eval mode, got one in training mode; call `.eval()`, or train one "
                "adapter at a time."
            )
        known = self._own_adapters()
        unknown = set(adapter_names) - known - {"__base__"}
        if unknown:
            raise ValueError(
                f'adapter_names: expected {", ".join(sorted(known))} or "__base__", got {", ".join(sorted(unknown))}.'
            )
        layers = self._adapted_layers
        for layer in layers:
            layer.call_state.adapter_names = adapter_names
        try:
            yield
        finally:
            for layer in layers:
                layer.call_state.adapter_names = None
