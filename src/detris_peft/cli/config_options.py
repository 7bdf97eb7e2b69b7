"""The fields of `DetrisConfig` as options, derived from the fields, types and docstrings that its class declares."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ..field_types import describe_type, has_type
from .declared_fields import Class, declared_types, described_fields
from .option_fields import parse_boolean, spellings

_CONFIG: Class = ("modeling/configuration_detris.py", "DetrisConfig")
_PARALLEL_ADAPTER: tuple[Class, ...] = (
    ("adapters/config.py", "AdapterConfig"),
    ("adapters/config.py", "ParallelAdapterConfig"),
)
# The default types of adapters, as in `modeling.adapter_configs.DEFAULT_TYPES`.
ADAPTERS: dict[str, tuple[Class, ...]] = {
    "vision_adapter": (*_PARALLEL_ADAPTER, ("adapters/dense_aligner/config.py", "DenseAlignerConfig")),
    "text_adapter": (*_PARALLEL_ADAPTER, ("adapters/text_adapter/config.py", "TextAdapterConfig")),
}
BACKBONES = ("vision_config", "text_config")
_NONE = ("none", "null")


@cache
def config_option_types() -> dict[str, Any]:
    """Return the types of all options by name.

    Fields of the default types of adapters are options of their own: `vision_adapter.dim`. All fields of any type can
    be given as one mapping: `vision_adapter: {peft_type: LORA, r: 8}`.
    """
    types = declared_types(_CONFIG) | dict.fromkeys(BACKBONES, dict | None)
    for name, classes in ADAPTERS.items():
        types |= {f"{name}.{field}": kind for field, kind in declared_types(*classes).items()}
    return types


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser. Those that are not given are absent from its namespace."""
    group = parser.add_argument_group("fields of DetrisConfig; the default is that of the preset and its backbones")
    help_texts = described_fields(_CONFIG)
    for name, classes in ADAPTERS.items():
        help_texts |= {f"{name}.{field}": text for field, text in described_fields(*classes).items()}
    for name, kind in config_option_types().items():
        keywords = _argparse_keywords(kind)
        text = help_texts.get(name, "").replace("%", "%%")
        group.add_argument(*spellings(name), dest=name, default=argparse.SUPPRESS, help=text, **keywords)


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `DetrisConfig` that are set on the command line or in a file.

    Raises:
        ValueError: an option has the wrong type, or contradicts another one.
    """
    given = {}
    for name, kind in config_option_types().items():
        if not hasattr(namespace, name):
            continue
        value = getattr(namespace, name)
        if not has_type(value, kind) and has_type([value], kind):  # a list of one item
            value = [value]
        if not has_type(value, kind):
            raise ValueError(f"--{name}: expected {describe_type(kind)}, got {value!r}; correct it.")
        given[name] = value
    for name in ADAPTERS:
        fields = [option for option in given if option.startswith(f"{name}.")]
        if name in given and given[name] is None and fields:
            raise ValueError(f"expected --{name} none or --{fields[0]}, got both; remove one of them.")
    return given


def flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the fields of an adapter under dotted names: `{"vision_adapter.dim": 64}`.

    A mapping with the type of the adapter, or with fields of another type than the default one, stays as it is.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        fields = declared_types(*ADAPTERS[name]) if name in ADAPTERS else {}
        nested = value if isinstance(value, dict) and fields and value.keys() <= fields.keys() else None
        for key, item in ({name: value} if nested is None else {f"{name}.{k}": v for k, v in nested.items()}).items():
            if key in flat:
                raise ValueError(f"expected {key} once, got it twice; remove one of them.")
            flat[key] = item
    return flat


def _argparse_keywords(kind: Any) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a type."""
    members = [member for member in get_args(kind) if member is not NoneType] or [kind]
    if kind is bool:
        return {"type": parse_boolean, "nargs": "?", "const": True}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+", "metavar": "N"}
    if get_origin(kind) is dict:
        return {"type": _parse_value, "metavar": "YAML"}
    if members == [str] or kind is int:
        return {"type": members[0], "metavar": "N" if kind is int else "TEXT"}
    if float in members or kind is float:
        return {"type": float, "metavar": "X"}
    if any(get_origin(member) is list for member in members):
        return {"action": _StoreValues, "type": _parse_value, "nargs": "+", "metavar": "VALUE"}
    return {"type": _parse_value, "metavar": "YAML"}


class _StoreValues(argparse.Action):
    """Store several values as a list, and a single one as it is."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _parse_value(text: str) -> Any:
    """Parse a value in YAML's notation: `none`, `3`, `[1, 2]`, `{dim: 64}`, or plain text."""
    import yaml

    if text.lower() in _NONE:
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected none, a number, a list or a mapping in YAML's notation, got {text!r}"
        ) from None
