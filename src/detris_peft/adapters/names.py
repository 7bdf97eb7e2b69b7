"""Names of adapters. They become parts of keys, attributes of modules and names of folders."""

from __future__ import annotations

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def key_parts(model: nn.Module) -> set[str]:
    """Return all names of modules, parameters and buffers of a model, except the names of its adapters."""
    modules = list(model.modules())
    # Adapters are entries of dictionaries that are direct children of a tuner's layer.
    containers = {
        id(child)
        for module in modules
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        for name, child in module.named_children()
        if name not in ("base_layer", "original_module")
    }
    parts = {"base_model", "model"}  # the prefix in a PeftModel
    for module in modules:
        if id(module) not in containers:
            parts.update(module._modules, module._parameters, module._buffers)
    return parts


def check_adapter_names(names: Iterable[str], parts: set[str]) -> None:
    """Check the names of all adapters of a model against the parts of its keys.

    peft selects an adapter's weights by its name: if a module had that name as well, saving one adapter would drop
    weights of another.

    Args:
        names: names of the adapters.
        parts: names that occur in the keys of the model for other reasons; see `key_parts`.

    Raises:
        ValueError: a name is part of a key, or cannot be the name of a submodule and of a folder.
    """
    for name in names:
        check_adapter_name(name)
        if name in parts:
            raise ValueError(f"adapter_name={name!r}: a module already has this name; choose another adapter name.")


def check_adapter_name(name: str) -> None:
    """Raise a ValueError if a name cannot be the name of a submodule and of a folder."""
    if not isinstance(name, str) or not name or any(character in name for character in "./\\\0"):
        raise ValueError(
            f"adapter_name={name!r}: expected a name without '.', '/' and '\\', for it names a module and a folder."
        )
    # Branches are submodules of a ModuleDict, whose attributes cannot be names; `__base__` means "no adapter".
    if name == "__base__" or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"adapter_name={name!r}: this name is reserved; choose another adapter name.")
