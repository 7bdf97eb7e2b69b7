"""The weights of one adapter, under the keys of its file.

The keys of a file are those of the model without the adapter's name: `...mlp.dense_aligner_branches.down.weight`. peft
finds an adapter's weights by searching the keys for names, which selects wrong ones if an adapter is named like a
module. The functions here find those of our own types by walking the modules, and ask peft for those of its types.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .layer import AdapterLayer
from .registry import type_name

# Added to the names of modules, but not always to the keys of a state dict, by torch.compile, FSDP and checkpointing.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIX = "base_model.model."


def adapter_keys(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Return the keys of an adapter: those in its file → those in the model, both without the names of wrappers.

    Args:
        model: a `PeftModel`, or a model into which the adapter was injected.
        adapter_name: the adapter; an unknown one has no keys.

    Raises:
        ValueError: peft does not save the weights of this type of adapter as they are in the model.
    """
    keys, is_own, seen = {}, False, set()  # modules that several branches share are saved once, with the first
    for path, module in model.named_modules():
        if isinstance(module, AdapterLayer) and adapter_name in module.branches:
            container = module.adapter_layer_names[0]
            names, is_own = persistent_names(module.branches[adapter_name], seen), True
            pairs = {f"{container}.{name}": f"{container}.{adapter_name}.{name}" for name in names}
        elif isinstance(module, AuxiliaryTrainingWrapper):  # a module of `modules_to_save`
            pairs = module.adapter_state_dict_load_map(adapter_name)
        else:
            continue
        prefix = f"{path}." if path else ""
        keys |= {prefix + file: prefix + own for file, own in pairs.items()}
    if not is_own and isinstance(model, PeftModel) and adapter_name in model.peft_config:
        keys = _keys_of_peft(model, adapter_name)
    return {_without_repetition(without_wrappers(file)): without_wrappers(own) for file, own in keys.items()}


def _keys_of_peft(model: PeftModel, adapter_name: str) -> dict[str, str]:
    """Return the keys of an adapter of peft (LoRA, IA3, ...): peft selects and renames placeholders of the weights."""
    placeholders = {key: torch.empty(0, device="meta") for key in persistent_names(model)}
    names = {id(value): key for key, value in placeholders.items()}
    selected = get_peft_model_state_dict(model, placeholders, adapter_name, save_embedding_layers=False)
    changed = [file for file, value in selected.items() if id(value) not in names]
    if changed:
        raise ValueError(
            f"adapter {adapter_name!r}: expected a type whose weights peft saves as they are, got "
            f"{type_name(model.peft_config[adapter_name].peft_type)}, for which it computes {changed[0]}; use another "
            "type of adapter."
        )
    return {file: names[id(value)] for file, value in selected.items()}


def persistent_names(model: nn.Module, seen: set[int] | None = None) -> list[str]:
    """Return the keys of a model's state dict, without gathering the weights if they are sharded.

    Args:
        model: the model.
        seen: ids of modules to omit; those of the model are added.
    """
    names = []
    for path, module in model.named_modules(remove_duplicate=False):
        if seen is not None:
            if id(module) in seen:
                continue
            seen.add(id(module))
        for name in (*module._parameters, *(module._buffers.keys() - module._non_persistent_buffers_set)):
            if getattr(module, name, None) is not None:
                names.append(f"{path}.{name}" if path else name)
    return names


def _without_repetition(key: str) -> str:
    """Return a key without the repeated prefix of nested PeftModel wrappers: the file fits the plain backbone."""
    while key.startswith(PREFIX * 2):
        key = key.removeprefix(PREFIX)
    return key


def adapter_state_dict(
    model: nn.Module, adapter_name: str, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights and running statistics of an adapter, under the keys of its file.

    Args:
        model: a `PeftModel`, or a model into which the adapter was injected.
        adapter_name: the adapter.
        state_dict: take the weights from here instead of from the model; the keys are those of `model.state_dict()`.

    Raises:
        ValueError: the model has no such adapter, or `state_dict` does not contain all of its weights.
    """
    keys = adapter_keys(model, adapter_name)
    if not keys:
        known = ", ".join(getattr(model, "peft_config", {}))
        raise ValueError(
            f"adapter_name={adapter_name!r}: expected an adapter of the model ({known or 'it has none'}); correct it."
        )
    source = model.state_dict() if state_dict is None else state_dict
    source = {without_wrappers(key): value for key, value in source.items()}
    missing = sorted(keys.values() - source.keys())
    if missing:
        raise ValueError(
            f"state_dict: expected all weights of adapter {adapter_name!r}, but {len(missing)} are missing, such as "
            f"{missing[:3]}; pass the complete state dict."
        )
    return {file: source[own] for file, own in keys.items()}


def load_adapter_state_dict(
    model: nn.Module, adapter_name: str, state_dict: Mapping[str, torch.Tensor], where: str = "state_dict"
) -> None:
    """Load the weights of an adapter. Nothing is changed if they do not fit.

    Args:
        model: a `PeftModel`, or a model into which the adapter was injected.
        adapter_name: the adapter.
        state_dict: its weights, under the keys of its file.
        where: the file that they come from, for error messages.

    Raises:
        ValueError: a key is missing or unexpected, or a weight has the wrong shape or type or is not finite.
    """
    check_weights(state_dict, adapter_state_dict(model, adapter_name), f"adapter {adapter_name!r}", f"{where}: the")
    keys = adapter_keys(model, adapter_name)
    own = {without_wrappers(key): key for key in model.state_dict()}
    model.load_state_dict({own[keys[file]]: value for file, value in state_dict.items()}, strict=False)


def check_weights(
    given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str, start: str = "The"
) -> None:
    """Check weights before they are loaded.

    Args:
        given: the weights.
        expected: tensors with the keys and shapes that are needed, and of the same kind (floating point or integer).
        what: what the weights belong to, for error messages.
        start: start of the error messages, with the file that the weights come from: "FILE: the".

    Raises:
        ValueError: a key is missing or unexpected, or a weight has the wrong shape or type, no data, or is not finite.
    """
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{start} weights do not fit {what} on this backbone: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; load them with the backbone and the config that they "
            "were trained with."
        )
    for key, value in given.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"{start} weights of {what} do not fit this backbone: expected {tuple(expected[key].shape)} for "
                f"{key}, got {tuple(value.shape)}; load them over a backbone of the same width as in training."
            )
        problem = _problem(value, expected[key])
        if problem:
            raise ValueError(f"{start} weights of {what} cannot be loaded: expected {problem.format(key=key)}")


def _problem(value: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return what is wrong with the type or the values of a weight, or None."""
    if value.is_meta:
        return "data for {key}, got a tensor on the meta device; load the weights before they are used."
    floating = expected.is_floating_point()
    if value.is_complex() or value.dtype == torch.bool or value.is_floating_point() != floating:
        kind = "floating-point" if floating else "integer"
        return f"{kind} values for {{key}}, got {value.dtype}; save the weights of the trained model again."
    if not torch.isfinite(value.to(expected.dtype)).all():
        return "finite values for {key}, got NaN or infinity; use a checkpoint from before the training diverged."
    return None


def without_wrappers(key: str) -> str:
    """Return a key or module name without the names that torch.compile, FSDP and checkpointing add."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
