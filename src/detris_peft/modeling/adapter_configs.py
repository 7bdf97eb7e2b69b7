"""Adapter configs as fields of `DetrisConfig`: read, checked, derived and written.

Any config of peft whose tuner changes modules of an encoder is accepted: LoRA, IA3, LN tuning, our own types, and
types that a user registers.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any, get_type_hints

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
from peft.tuners.tuners_utils import BaseTuner

from ..adapters import DenseAlignerConfig, TextAdapterConfig
from ..adapters.config import as_list, has_block_index
from ..adapters.registry import check_registered, type_name
from ..errors import one_line
from ..field_types import describe_type, has_type
from .config_limits import MAX_HEAD_WIDTH, MAX_WIDTH
from .layers import DEFAULT_DEPTH, scale_layers

# The type of an adapter whose dict names no `peft_type`.
DEFAULT_TYPES: dict[str, type[PeftConfig]] = {"vision_adapter": DenseAlignerConfig, "text_adapter": TextAdapterConfig}
# Query and value projections: the names in ViT, DINO, CLIP and SigLIP, then those in BERT and XLM-RoBERTa.
QUERY_AND_VALUE = ("q_proj", "v_proj", "query", "value")
_FIELD = r"\w+[:=]"  # how a message about a field starts
_SET_BY_PEFT = ("auto_mapping", "peft_version", "inference_mode")
# Tuners that need what training or loading does not provide here; without it they would silently not work as intended.
_UNSUPPORTED = {
    "ADALORA": "needs a call after each step, which reallocates the ranks; use LORA",
    "ADAPTION_PROMPT": "is for language models; use LORA",
    "FROD": "decomposes the encoder's weights when it is loaded, with results that depend on the machine; use LORA",
    "POLY": "needs the id of a task for each sample; use LORA",
    "PSOFT": "decomposes the encoder's weights when it is loaded, with results that depend on the machine; use LORA",
    "SHADOW": "is for language models; use LORA",
    "XLORA": "needs trained LoRA adapters; use LORA",
}


def own_fields(cls: type[PeftConfig]) -> dict[str, Any]:
    """Return the fields that a user sets in an adapter's config, with their types."""
    inherited, types = {f.name for f in fields(PeftConfig)}, get_type_hints(cls)
    return {f.name: types[f.name] for f in fields(cls) if f.name not in inherited}


def is_adapter_field(name: Any) -> bool:
    """Return whether any type that is registered with peft has a field of this name."""
    return any(name == f.name for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values() for f in fields(cls))


def adapter_config(name: str, value: Any) -> PeftConfig | None:
    """Return an adapter's config from the value of a field of `DetrisConfig`.

    Args:
        name: the field, `"vision_adapter"` or `"text_adapter"`.
        value: a config, a dict of its fields, or None. A dict names its type by `peft_type`; without it, it is a Dense
            Aligner for the image encoder, and a text adapter for the text encoder.

    Raises:
        ValueError: the value is something else, of a type that cannot be an adapter of this encoder, or has an unknown
            field or one of a wrong type.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        value = _from_dict(name, value)
    if not isinstance(value, PeftConfig):
        raise ValueError(
            f"{name}: expected a config of peft, such as a {DEFAULT_TYPES[name].__name__}, or None, got {value!r:.80}."
        )
    _check_supported(name, type(value), value.peft_type)
    try:
        check_registered(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    kind, expected = getattr(value, "encoder_kind", None), "image" if name == "vision_adapter" else "text"
    if kind not in (None, expected):
        raise ValueError(
            f"{name}: expected an adapter for {expected} encoders, got a {type(value).__name__}, which is for "
            f"{kind} encoders; use {DEFAULT_TYPES[name].__name__}, or another type for both."
        )
    _check_types(name, {field: getattr(value, field) for field in own_fields(type(value))}, type(value))
    _check_range(name, value)
    for field in value.to_dict():
        nested = getattr(value, field, None)
        if is_dataclass(nested):
            raise ValueError(
                f"{name}.{field}: expected no nested config, got {type(nested).__name__}, whose method needs more "
                "than the training here; remove it, and set another initialization (for LoRA, init_lora_weights=True)."
            )
    adapter_dict(value)  # refused here, and not when the trained adapter is saved
    return value


def adapter_dict(adapter: PeftConfig) -> dict[str, Any]:
    """Return an adapter's fields as JSON values, without those that peft sets itself.

    Raises:
        ValueError: a field is of a type that JSON does not have.
    """
    values = {key: value for key, value in adapter.to_dict().items() if key not in _SET_BY_PEFT}
    values["peft_type"] = type_name(adapter.peft_type)
    if is_of_peft(type(adapter)):
        # peft's configs have many fields, most of which are empty and do not exist in all versions.
        values = {key: value for key, value in values.items() if value not in (None, {}, [])}
    try:
        return json.loads(json.dumps(values, default=_as_json, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(adapter).__name__}: expected fields that JSON can hold, got another one ({one_line(error)}); "
            "correct it."
        ) from None


def scale_adapter(adapter: PeftConfig, depth: int, own_depth: int, text_dim: int) -> PeftConfig:
    """Return a copy of an adapter's config for an encoder of another depth, and a text encoder of another width."""
    changes: dict[str, Any] = {}
    if getattr(adapter, "layers_to_transform", None) is not None:
        changes["layers_to_transform"] = scale_layers(as_list(adapter.layers_to_transform), depth, own_depth)  # type: ignore[attr-defined]
    if getattr(adapter, "takes_text_states", False):
        changes["text_dim"] = text_dim
    return replace(adapter, **changes) if changes else adapter


def new_adapter(name: str, values: dict[str, Any], depth: int, text_dim: int) -> PeftConfig:
    """Return the config of an adapter for an encoder, from the given fields.

    Blocks and the width of the text encoder, if not given, are those of the defaults, scaled to the encoder.

    Args:
        name: the field of `DetrisConfig`.
        values: fields of the adapter.
        depth: number of blocks of the encoder.
        text_dim: width of the text encoder.
    """
    adapter = adapter_config(name, values)
    assert adapter is not None
    scaled = scale_adapter(adapter, depth, DEFAULT_DEPTH, text_dim)
    kept = {key: value for key, value in vars(adapter).items() if key in values and hasattr(scaled, key)}
    return replace(scaled, **{key: value for key, value in kept.items() if key in own_fields(type(scaled))})


def change_adapter(name: str, adapter: PeftConfig, changes: dict[str, Any]) -> PeftConfig:
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
    changed = adapter_config(name, {**values, **changes})
    assert changed is not None
    return changed


def _from_dict(name: str, given: Mapping[str, Any]) -> PeftConfig:
    """Return the config with these fields."""
    values = dict(given)
    peft_type = values.pop("peft_type", None)
    cls = DEFAULT_TYPES[name] if peft_type is None else _registered_class(name, peft_type)
    unknown = sorted(str(key) for key in values.keys() - {f.name for f in fields(cls) if f.init})
    if unknown:
        raise ValueError(
            f"{name}.{unknown[0]}: expected a field of {cls.__name__} ({', '.join(own_fields(cls))}), got an unknown "
            "name; correct or remove it."
        )
    _check_types(name, values, cls)
    try:
        return cls(**values)
    except (ValueError, TypeError, AttributeError, ImportError) as error:  # peft checks few types
        reason = one_line(error)
        raise ValueError(f"{name}{'.' if re.match(_FIELD, reason) else ': '}{reason}") from None


def _registered_class(name: str, peft_type: Any) -> type[PeftConfig]:
    """Return the class that is registered for a `peft_type`."""
    value = type_name(peft_type)
    cls: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(value)  # type: ignore[call-overload]
    if not isinstance(cls, type):
        known = sorted(type_name(key) for key in PEFT_TYPE_TO_CONFIG_MAPPING)
        nearest = difflib.get_close_matches(value.upper(), known, n=1) or ["LORA"]
        raise ValueError(
            f"{name}.peft_type: expected a type registered with peft, such as {nearest[0]}, got {peft_type!r}; "
            "import the module that registers it, or correct the name."
        )
    _check_supported(name, cls, value)
    return cls


def _check_supported(name: str, cls: type[PeftConfig], peft_type: Any) -> None:
    """Raise a ValueError for a type of adapter that does not change modules of an encoder, or needs more than that."""
    value = type_name(peft_type)
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(value)  # type: ignore[call-overload]
    if value in _UNSUPPORTED:
        raise ValueError(f"{name}: expected an adapter of another type, got {value}, which {_UNSUPPORTED[value]}.")
    if not isinstance(tuner, type) or not issubclass(tuner, BaseTuner):
        raise ValueError(
            f"{name}: expected an adapter that changes modules of the encoder, such as LORA, IA3 or DENSE_ALIGNER, "
            f"got a {cls.__name__} ({value}); use another type."
        )


def is_of_peft(cls: type[PeftConfig]) -> bool:
    """Return whether a type of adapter belongs to peft itself."""
    return cls.__module__.partition(".")[0] == "peft"


def _check_types(name: str, values: Mapping[str, Any], cls: type[PeftConfig]) -> None:
    types, defaults = own_fields(cls), {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    for field, value in values.items():
        if field not in types or (field in defaults and value is defaults[field]):
            continue
        accepted = list(value) if isinstance(value, set) and is_of_peft(cls) else value  # peft converts lists to sets
        # peft annotates the scale of LoRA as an integer, but uses it as a number.
        expected = float if "alpha" in field and types[field] is int else types[field]
        if not has_type(accepted, expected):
            raise ValueError(f"{name}.{field}={value!r}: expected {describe_type(expected)}; correct it.")


def _check_range(name: str, adapter: PeftConfig) -> None:
    """Raise a ValueError for sizes far above any useful one, numbers that are not finite, and invalid patterns."""
    for field in own_fields(type(adapter)):
        value = getattr(adapter, field)
        maximum = MAX_HEAD_WIDTH if field in ("r", "dim", "rank_pattern") else MAX_WIDTH
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}.{field}={value!r}: expected a finite number; correct it.")
            if isinstance(number, int) and not field.endswith(("seed", "key")) and abs(number) > maximum:
                raise ValueError(f"{name}.{field}={value!r}: expected at most {maximum:,}; correct it.")
            if "dropout" in field and isinstance(number, (int, float)) and not 0 <= number < 1:
                raise ValueError(f"{name}.{field}={value!r}: expected a value in [0, 1); correct it.")
        for pattern in _patterns(field, value):
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"{name}.{field}={value!r}: expected a regular expression, got an invalid one ({error}); "
                    "correct it."
                ) from None


def _patterns(field: str, value: Any) -> list[str]:
    """Return the regular expressions in the value of a field."""
    if field in ("target_modules", "exclude_modules"):
        patterns = [value]  # a list contains names
    elif field == "layers_pattern":
        patterns = as_list(value)
    else:
        patterns = list(value) if field in ("rank_pattern", "alpha_pattern") and isinstance(value, dict) else []
    return [pattern for pattern in patterns if isinstance(pattern, str)]


def _as_json(value: Any) -> Any:
    """Convert a value that JSON does not have."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value).__name__)
