"""The tuner model shared by all adapters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .block_layouts import ANY_LIST, BLOCK_LIST, BlockLayout
from .config import AdapterConfig, as_list, has_block_index
from .layer import NOT_MERGEABLE, AdapterLayer
from .names import check_adapter_names, key_parts
from .portable import PortableModule
from .registry import check_registered
from .state_dict import PREFIX, adapter_keys, check_weights, without_wrappers


class AdapterModel(PortableModule, BaseTuner):
    """Inject `tuner_layer_cls` at modules of the selected blocks.

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

    tuner_layer_cls: type[AdapterLayer]
    config_cls: ClassVar[type[AdapterConfig]]
    layouts: ClassVar[dict[str, BlockLayout]]
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
    def _adapted_layers(self) -> list[AdapterLayer]:
        return [m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls)]

    # Selecting modules

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        known = model_config.get("model_type") in self.layouts
        peft_config.layers_pattern = peft_config.layers_pattern or (BLOCK_LIST if known else ANY_LIST)
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Raise a ValueError for modules and blocks that do not exist, before any module is changed."""
        names = [] if peft_config.task_type else peft_config.modules_to_save or []  # peft adds names for a task
        unknown = [name for name in names if not any(key.endswith(name) for key, _ in model.named_modules())]
        if unknown:
            raise ValueError(
                f"modules_to_save: expected modules of {type(model).__name__}, got {', '.join(unknown)}; correct or "
                "remove the name."
            )
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

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to all selected modules (method name required by peft). On an error, nothing is changed."""
        try:
            config = self.peft_config[adapter_name]
            check_registered(config)
            check_adapter_names(self.peft_config, key_parts(model) | self._new_key_parts(config))
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            self._remove_adapter(adapter_name)
            raise
        layers = [layer for layer in self._adapted_layers if adapter_name in layer.branches]
        self._share_modules([layer.branches[adapter_name] for layer in layers])
        for layer in layers:
            layer.mark_initial(adapter_name)

    def _share_modules(self, branches: list[Any]) -> None:
        """Replace modules of the new branches of an adapter by modules that all of them share."""

    def _new_key_parts(self, config: Any) -> set[str]:
        """Return the parts of the keys that an adapter of this config adds, without its name."""
        # The meta device takes no memory, and draws no random numbers, which would change the seeded weights.
        with torch.device("meta"):
            layer = self.tuner_layer_cls(nn.Linear(1, config.dim))  # a width that Compacter accepts
            branch = layer.new_branch(config)
        parts = {"base_layer", layer.adapter_layer_names[0]} | key_parts(branch)
        return parts | ({"original_module", "modules_to_save"} if config.modules_to_save else set())

    def _remove_adapter(self, adapter_name: str) -> None:
        """Remove an adapter that could not be added or loaded, and with the last one the layers."""
        if self._own_adapters() - {adapter_name}:
            self.delete_adapter(adapter_name)
        else:
            self._unload_and_optionally_merge(merge=False)

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
        layer.train(target.training)
        self._connect(layer, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own version copies `weight` and `bias`, which an MLP does not have.
        setattr(parent, child_name, new_module)

    def _connect(self, layer: Any, peft_config: Any, key: str) -> None:
        """Connect a new layer, which will replace the module `key`, with other modules of its block."""

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
        if not self.peft_config and hasattr(self.model, "peft_config"):  # peft sets it after the injection
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
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Select an adapter's weights. peft has already dropped all keys that contain the name of another adapter."""
        own = set(adapter_keys(model, adapter_name).values())
        dropped = own - {without_wrappers(key) for key in state_dict}
        taken = [name for name in unwanted_adapter_names if any(name in key.split(".") for key in dropped)]
        if taken:
            raise ValueError(
                f"adapter {adapter_name!r}: cannot be saved next to the adapter {taken[0]!r}, whose name is also that "
                "of a module; delete that adapter and add it under another name."
            )
        container = f".{cls.tuner_layer_cls.adapter_layer_names[0]}."  # peft adds `modules_to_save`
        return {key: value for key, value in state_dict.items() if container in key and without_wrappers(key) in own}

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
        """Check weights strictly, unlike peft. If they are refused, an adapter that was added for them is removed."""
        keys = adapter_keys(model, adapter_name)
        keys |= {PREFIX + file: own for file, own in keys.items() if not file.startswith(PREFIX)}  # not a PeftModel
        remapped = {keys.get(key, key): value for key, value in state_dict.items()}
        parameters = {without_wrappers(key): value for key, value in model.state_dict().items()}
        expected = {own: parameters[own] for own in keys.values()}
        embeddings = _embedding_keys(model)  # peft saves those of a resized vocabulary
        given = {key: value for key, value in remapped.items() if key not in embeddings}
        try:
            check_weights(given, expected, f"adapter {adapter_name!r}")
        except ValueError:
            _discard_initial_adapter(model, config, adapter_name)
            raise
        own = {without_wrappers(key): key for key in model.state_dict()}
        loaded = {own.get(key, key): value for key, value in remapped.items()}
        # A shared tensor is saved under one key; peft reports its other keys as missing.
        tensors = model.state_dict(keep_vars=True)
        values = {id(tensors[key]): value for key, value in loaded.items() if key in tensors}
        return {key: values[id(tensor)] for key, tensor in tensors.items() if id(tensor) in values} | loaded

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


def _embedding_keys(model: Any) -> set[str]:
    getters = ("get_input_embeddings", "get_output_embeddings")
    layers = [getattr(model, name)() for name in getters if hasattr(model, name)]
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if any(module is layer for layer in layers)
        for name in module.state_dict()
    }


def _discard_initial_adapter(model: Any, config: Any, adapter_name: str) -> None:
    """Remove an adapter that was added in order to load a file, unless its weights have changed since."""
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer) and adapter_name in m.branches]
    is_new = config.is_from_file and all(layer.is_initial(adapter_name) for layer in layers)
    if not is_new or not isinstance(model, PeftModel):
        return
    tuner: Any = model.base_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that the deleted adapter was active
        tuner._remove_adapter(adapter_name)
    if tuner.active_adapters:
        model.active_adapter = tuner.active_adapters[0]
