"""Adapter configs as fields of `DetrisConfig`: read, checked, derived and written."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar, get_type_hints

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftType

from ..adapters import ParallelAdapterConfig
from ..adapters.config import as_list, has_block_index
from ..field_types import describe_type, has_type
from .layers import scale_layers

Adapter = TypeVar("Adapter", bound=ParallelAdapterConfig)
_SET_BY_PEFT = ("auto_mapping", "peft_version", "inference_mode")


def own_fields(cls: type[PeftConfig]) -> dict[str, Any]:
    """Return the fields that a user sets in an adapter's config, with their types."""
    inherited, types = {f.name for f in fields(PeftConfig)}, get_type_hints(cls)
    return {f.name: types[f.name] for f in fields(cls) if f.name not in inherited}


def adapter_config(name: str, value: Any, cls: type[Adapter]) -> Adapter | None:
    """Return an adapter's config from the value of a field of `DetrisConfig`.

    Args:
        name: the field.
        value: a config, a dict of its fields, or None.
        cls: the class of the config; a dict may name a subclass by its `peft_type`.

    Raises:
        ValueError: the value is something else, or has an unknown field or one of a wrong type.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        values = dict(value)
        selected = _registered_class(name, values.pop("peft_type", None), cls)
        unknown = sorted(str(key) for key in values.keys() - {f.name for f in fields(selected)})
        if unknown:
            raise ValueError(
                f"{name}.{unknown[0]}: expected a field of {selected.__name__} ({', '.join(own_fields(selected))}), "
                "got an unknown name; correct or remove it."
            )
        _check_types(name, values, selected)
        try:
            value = selected(**values)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
    if not isinstance(value, cls):
        got = f"a {type(value).__name__}" if isinstance(value, PeftConfig) else repr(value)
        raise ValueError(f"{name}: expected a {cls.__name__} or None, got {got}.")
    if type(value) is not PEFT_TYPE_TO_CONFIG_MAPPING.get(value.peft_type):  # type: ignore[arg-type]
        raise ValueError(
            f"{name}: expected a config whose class is registered for its peft_type, got a {type(value).__name__} "
            f"with peft_type {value.peft_type}, which would load as another class; register it under its own type "
            "with detris_peft.adapters.register."
        )
    _check_types(name, {field: getattr(value, field) for field in own_fields(type(value))}, type(value))
    return value


def adapter_dict(adapter: PeftConfig) -> dict[str, Any]:
    """Return an adapter's fields as JSON values, without those that peft sets itself."""
    values = {key: value for key, value in adapter.to_dict().items() if key not in _SET_BY_PEFT}
    values["peft_type"] = PeftType(adapter.peft_type).value
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


def scale_adapter(adapter: Adapter, depth: int, own_depth: int, **changes: Any) -> Adapter:
    """Return a copy of an adapter's config for an encoder of another depth, with other values of some fields."""
    if adapter.layers_to_transform is not None:
        changes["layers_to_transform"] = scale_layers(as_list(adapter.layers_to_transform), depth, own_depth)
    return replace(adapter, **changes)


def change_adapter(name: str, adapter: Adapter, changes: dict[str, Any]) -> Adapter:
    """Return a copy of an adapter's config with other values of some fields.

    Args:
        name: the field of `DetrisConfig`.
        adapter: its value.
        changes: values by field.
    """
    values = adapter_dict(adapter)
    targets = changes.get("target_modules")
    if isinstance(targets, str) or any(map(has_block_index, targets or ())):
        values["layers_to_transform"] = None  # the targets select the blocks
    changed = adapter_config(name, {**values, **changes}, type(adapter))
    assert changed is not None
    return changed


def _registered_class(name: str, peft_type: Any, cls: type[Adapter]) -> type[Adapter]:
    """Return the class that is registered for a `peft_type`, which must be `cls` or a subclass."""
    if peft_type is None:
        return cls
    registered: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(getattr(peft_type, "value", peft_type))
    if not isinstance(registered, type) or not issubclass(registered, cls):
        raise ValueError(
            f"{name}.peft_type: expected the type of a {cls.__name__}, such as {_type_name(cls)}, got {peft_type!r}; "
            "import the module that registers it, or correct the name."
        )
    return registered


def _type_name(cls: type[PeftConfig]) -> str:
    return next(str(getattr(key, "value", key)) for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items() if value is cls)


def _check_types(name: str, values: dict[str, Any], cls: type[PeftConfig]) -> None:
    types = own_fields(cls)
    for field, value in values.items():
        if field in types and not has_type(value, types[field]):
            raise ValueError(f"{name}.{field}={value!r}: expected {describe_type(types[field])}; correct it.")
