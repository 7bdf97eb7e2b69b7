"""YAML files of options (`--config`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..errors import one_line
from ..field_types import describe_type, has_type
from ..precision import EARLIER_OPTIONS, describe_replacement
from .config_options import ADAPTERS, flatten


def read_options(file: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Read a YAML file of options, and check their names and types.

    Args:
        file: the file.
        types: the types of all options by name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no YAML, or an option is unknown, set twice or of another type.
    """
    from ..safe_loading import read_yaml

    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"--config: expected a YAML file of options, got {file}: no such file.") from None
    return check_options(content, file, types)


def check_options(content: Any, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return options after checking their names and types. The fields of an adapter get dotted names.

    Args:
        content: the options by name, as read from a file; None: no options.
        where: the file, or a part of it; prefix of error messages.
        types: the types of all options by name.

    Raises:
        ValueError: an option is unknown, set twice or of another type.
    """
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected options such as `batch_size: 32`, got a {type(content).__name__}.")
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"{where}: expected names of options, got {unnamed[0]!r}; see --help.")
    try:
        options = flatten(content)
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(error)}") from None
    unknown = [name for name in options if name not in types]
    for name in EARLIER_OPTIONS:
        if name in unknown and "precision" in types:
            raise ValueError(f"{where}: {describe_replacement(name, options[name])}.")
    for name in ADAPTERS:
        adapter = options.get(name)
        if isinstance(adapter, dict):  # of another type than the default one
            from ..modeling.adapter_configs import is_adapter_field

            unknown += [f"{name}.{field}" for field in adapter if not is_adapter_field(field)]
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], types, n=1)
        hint = f"see --help, or use {nearest[0]}" if nearest else "see --help"
        raise ValueError(f"{where}: expected names of options, got {', '.join(unknown)}; {hint}.")
    return {name: _checked(where, name, value, types[name]) for name, value in options.items()}


def _checked(where: str, name: str, value: Any, expected: Any) -> Any:
    if isinstance(value, bool) and not has_type(value, expected):
        word = "yes" if value else "no"  # YAML reads these words as booleans: `val_split: no`
        value = word if has_type(word, expected) else value
    if value == "none" and not has_type(value, expected):
        value = None  # as on the command line; YAML's own word is null
    if not has_type(value, expected):
        raise ValueError(f"{where}: {name}: expected {describe_type(expected)}, got {value!r}; correct it.")
    return value
