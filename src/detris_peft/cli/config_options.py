"""The fields of `DetrisConfig` as options, derived from the declared fields, their types and the docstrings."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
import yaml
from transformers.hf_argparser import string_to_bool

from .. import DetrisConfig
from ..field_types import describe_type, has_type
from ..modeling.adapter_configs import DEFAULT_TYPES, change_adapter, new_adapter, own_fields
from ..modeling.backbone_adapters import adapt_backbone
from ..modeling.bridger_config import BridgerConfig
from ..modeling.encoders import build_backbone
from ..modeling.layers import DEFAULT_DEPTH

_BACKBONES = ("vision_config", "text_config")
_NONE = ("none", "null")


def config_option_types() -> dict[str, Any]:
    """Return the types of all options by name.

    Fields of the default types of adapters are options of their own: `vision_adapter.dim`. All fields of any type can
    be given as one mapping: `vision_adapter: {peft_type: LORA, r: 8}`.
    """
    types: dict[str, Any] = dict(DetrisConfig.__annotations__)
    types = {name: kind for name, kind in types.items() if name not in ("model_type", "sub_configs")}
    types |= dict.fromkeys((*_BACKBONES, "bridger"), dict | None)
    for name, cls in DEFAULT_TYPES.items():
        types[name] = dict | None
        types |= {f"{name}.{field}": kind for field, kind in own_fields(cls).items()}
    return types


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser. Those that are not given are absent from its namespace."""
    group = parser.add_argument_group("fields of DetrisConfig; the default is that of the preset and its backbones")
    help_texts = _help_texts(DetrisConfig)
    for name, cls in DEFAULT_TYPES.items():
        help_texts |= {f"{name}.{field}": text for field, text in _help_texts(cls).items()}
    for name, kind in config_option_types().items():
        names = [f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else [])]
        keywords = _argparse_keywords(kind)
        group.add_argument(
            *names, dest=name, default=argparse.SUPPRESS, help=help_texts.get(name, "").replace("%", "%%"), **keywords
        )


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
    for name in DEFAULT_TYPES:
        fields = [option for option in given if option.startswith(f"{name}.")]
        if name in given and given[name] is None and fields:
            raise ValueError(f"expected --{name} none or --{fields[0]}, got both; remove one of them.")
    return given


def apply_config_options(config: DetrisConfig, given: Mapping[str, Any]) -> DetrisConfig:
    """Return a config with the values of the given options.

    Args:
        config: the preset's config, scaled to the backbones.
        given: the options; see `given_options`.

    Raises:
        ValueError: a value is invalid, or does not fit another one.
    """
    values = {
        name: value for name, value in given.items() if name in DetrisConfig.__annotations__ and name not in _BACKBONES
    }
    depths = {"vision_adapter": config.vision_config, "text_adapter": config.text_config}
    for name, encoder in depths.items():
        changes = dict(values.pop(name, None) or {})
        changes |= {
            option.partition(".")[2]: value for option, value in given.items() if option.startswith(f"{name}.")
        }
        current = getattr(config, name)
        if name in given and given[name] is None:
            values[name] = None
        elif changes and ("peft_type" in changes or current is None):
            values[name] = new_adapter(name, changes, encoder.num_hidden_layers, config.text_config.hidden_size)
        elif changes:
            values[name] = change_adapter(name, current, changes)
    if values.get("bridger") is not None:
        values["bridger"] = _bridger(config, values["bridger"])
    for name, value in values.items():
        setattr(config, name, value)
    config.validate_architecture()
    config.check_inputs()
    for name, encoder in (("vision_adapter", config.vision_config), ("text_adapter", config.text_config)):
        try:
            with torch.device("meta"):  # without memory for weights
                adapt_backbone(build_backbone(encoder), getattr(config, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return config


def _bridger(config: DetrisConfig, changes: dict[str, Any]) -> BridgerConfig | None:
    """Return the Bridger of a config with other values of some fields; a new one if the config has none."""
    depths = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    current = config.bridger or BridgerConfig().scaled_to(depths[0], DEFAULT_DEPTH, depths[1], DEFAULT_DEPTH)
    return BridgerConfig.from_value({**current.to_dict(), **changes})


def flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the fields of an adapter under dotted names: `{"vision_adapter.dim": 64}`.

    A mapping with the type of the adapter, or with fields of another type than the default one, stays as it is.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        fields = own_fields(DEFAULT_TYPES[name]) if name in DEFAULT_TYPES else {}
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
        return {"type": string_to_bool, "nargs": "?", "const": True}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+", "metavar": "N"}
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
    if text.lower() in _NONE:
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise argparse.ArgumentTypeError("expected none, a number, a list or a mapping in YAML's notation") from None


def _help_texts(cls: type) -> dict[str, str]:
    """Return the descriptions of the arguments in the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docstring = inspect.cleandoc(base.__doc__ or "")
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
        for names, text in _entries(section[1] if section else ""):
            texts |= dict.fromkeys(names, text)
    return texts


def _entries(section: str) -> Iterable[tuple[list[str], str]]:
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        yield names.split(", "), " ".join(text.split())
