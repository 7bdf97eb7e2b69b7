"""Which weights a checkpoint contains, and which a model has that it would not contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...adapters.state_dict import adapter_keys, adapter_state_dict, persistent_names, without_wrappers
from .files import ADAPTERS, HEAD


def selected_adapters(model: Any, adapter_name: str | None = None) -> dict[str, str]:
    """Return the adapter to save for each backbone that has one: kind of backbone → name of the adapter.

    Args:
        model: a [`DetrisForReferringSegmentation`].
        adapter_name: the adapter, for every backbone that has one of this name; default: the active one.

    Raises:
        ValueError: there is no such adapter, or not exactly one is active.
    """
    backbones = {kind: getattr(model, f"{kind}_model") for kind in ADAPTERS}
    adapters = {
        kind: [name for name in backbone.peft_config if adapter_keys(backbone, name)]
        for kind, backbone in backbones.items()
        if isinstance(backbone, PeftModel)
    }
    if adapter_name is not None and not any(adapter_name in names for names in adapters.values()):
        known = sorted({name for names in adapters.values() for name in names})
        raise ValueError(f"adapter_name={adapter_name!r}: expected an adapter of the model, one of {known}.")
    selected = {}
    for kind, names in adapters.items():
        layers = [m for m in backbones[kind].modules() if isinstance(m, BaseTunerLayer)]
        active = [name for name in names if any(_is_active(name, layer) for layer in layers)]
        active = [adapter_name] if adapter_name in names else active
        if len(active) == 1:
            selected[kind] = active[0]
        elif names:
            raise ValueError(
                f"{kind}_model: expected one active adapter to save, got {active} of {names}; pass adapter_name=..., "
                f"or activate one with {kind}_model.set_adapter(...)."
            )
    return selected


def trainable_state_dict(
    model: Any, state_dict: Mapping[str, torch.Tensor] | None = None, adapter_name: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint contains: adapters, head, and encoders that are trained.

    Running statistics are included.

    Args:
        model: a [`DetrisForReferringSegmentation`].
        state_dict: take the weights from here instead of from the model.
        adapter_name: the adapter; default: the active one of each backbone.

    Returns:
        The weights of the head, and of encoders that are trained, under the model's keys. An adapter's weights under
        peft's keys, which do not contain the adapter's name, with the prefix `vision_model.` or `text_model.`.

    Raises:
        ValueError: weights are missing in `state_dict`, or have other shapes or types than the model's.
    """
    source = model.state_dict() if state_dict is None else state_dict
    # DistributedDataParallel adds the prefix "module." to all keys.
    source = {without_wrappers(key).removeprefix("module."): value for key, value in source.items()}
    needed = model.head_keys | trained_backbone_keys(model)
    state = {key: value for key, value in source.items() if key in needed}
    missing = sorted(needed - state.keys())
    if missing:
        raise ValueError(
            f"state_dict: expected all weights of the head, and of encoders that are trained, but {len(missing)} are "
            f"missing, such as {missing[:3]}; pass the complete state dict of an unchanged model."
        )
    for kind, name in selected_adapters(model, adapter_name).items():
        prefix = f"{kind}_model."
        own = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
        adapter = adapter_state_dict(getattr(model, f"{kind}_model"), name, own)
        state.update({prefix + key: value for key, value in adapter.items()})
    if state_dict is not None:
        _check_given(state, trainable_state_dict(model, adapter_name=adapter_name))
    return state


def check_nothing_is_lost(model: Any, adapter_name: str | None = None) -> None:
    """Raise a ValueError if training changes weights that the checkpoint does not contain.

    These are parameters that require gradients, adapters that `peft_config` does not contain (also frozen: the model's
    output depends on them), and buffers (such as running statistics) that differ from those of the backbone as it was
    loaded, or that belong to a module that was added to the model.

    Args:
        model: a [`DetrisForReferringSegmentation`].
        adapter_name: the adapter to save; if given, other adapters are omitted deliberately.
    """
    saved, omitted = set(model.head_keys | trained_backbone_keys(model)), set()
    for kind, name in selected_adapters(model, adapter_name).items():
        backbone = getattr(model, f"{kind}_model")
        for other in backbone.peft_config:
            keys = {f"{kind}_model.{key}" for key in adapter_keys(backbone, other).values()}
            (saved if other == name else omitted).update(keys)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = {id(p) for name, p in parameters.items() if without_wrappers(name) in saved}
    others = _parameters_of_tuners(model) - saved - omitted
    lost = [
        name
        for name, p in parameters.items()
        if id(p) not in tied and (p.requires_grad or without_wrappers(name) in others)
    ]
    if adapter_name is not None:
        lost = [name for name in lost if without_wrappers(name) not in omitted]
    for name, buffer in _persistent_buffers(model).items():
        if without_wrappers(name) not in saved | omitted and _has_changed(buffer, model.initial_buffers.get(name)):
            lost.append(name)
    if lost:
        shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise ValueError(
            f"save_pretrained: expected only the adapters of the config and the head to be trained, got {len(lost)} "
            f"other weights that would be lost ({shown}); freeze them with requires_grad_(False) and eval(), remove "
            "their modules, or save model.state_dict() yourself."
        )


def backbone_buffers(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the persistent buffers of both frozen backbones; transformers' encoders have none."""
    saved = {
        f"{kind}_model.{key}"
        for kind in ADAPTERS
        for name in getattr(getattr(model, f"{kind}_model"), "peft_config", {})
        for key in adapter_keys(getattr(model, f"{kind}_model"), name).values()
    }
    return {
        name: buffer.detach().clone()
        for name, buffer in _persistent_buffers(model).items()
        if name not in model.head_keys and name not in saved
    }


def head_keys(model: nn.Module) -> frozenset[str]:
    """Return the keys of the head's weights in the state dict of a new model."""
    return frozenset(key for key in model.state_dict() if key.split(".")[0] in HEAD)


def check_values(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise a ValueError for weights that could not be loaded again: without data, or not finite.

    Args:
        weights: the weights to save.
        where: the folder, for the message.
    """
    for name, value in weights.items():
        if value.is_meta:
            raise ValueError(
                f"{where}: expected weights to save, got {name} on the meta device, which has no data; load or move "
                "the weights first, or pass the gathered ones as state_dict=..."
            )
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{where}: expected finite weights to save, got NaN or infinity in {name}: the training diverged; "
                "resume from an earlier checkpoint, with a lower learning rate."
            )


def _check_given(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError if weights cannot be loaded into the model whose weights are `own`."""
    for name, value in given.items():
        # The model's own weights are empty where DeepSpeed has partitioned them.
        fits = value.shape == own[name].shape if own[name].numel() else value.numel() > 0
        if not fits or value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(
                f"state_dict: expected {name} as in the model ({tuple(own[name].shape)}, {own[name].dtype}), got "
                f"{tuple(value.shape)}, {value.dtype}; pass the gathered weights (accelerator.get_state_dict(model))."
            )


def trained_backbone_keys(model: Any) -> frozenset[str]:
    """Return the keys of the weights of both encoders if `train_backbones` is set, otherwise none."""
    if not model.config.train_backbones:
        return frozenset()
    return frozenset(
        without_wrappers(f"{kind}_model.{key}")
        for kind in ADAPTERS
        for key in persistent_names(getattr(model, f"{kind}_model"))
    )


def _is_active(name: str, layer: Any) -> bool:
    return name in layer.active_adapters and name in layer._get_available_adapters()


def _parameters_of_tuners(model: nn.Module) -> set[str]:
    """Return the names of the parameters of all adapters."""
    return {
        without_wrappers(f"{path}.{name}")
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        for name, _ in nn.Module.named_parameters(module)  # type: ignore[arg-type]
        if not name.startswith("base_layer.")
    }


def _persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _has_changed(buffer: torch.Tensor, initial: torch.Tensor | None) -> bool:
    if initial is None:
        return True
    if buffer.is_meta or initial.is_meta:
        return False
    return not torch.equal(buffer.detach().cpu(), initial.cpu().to(buffer.dtype))
