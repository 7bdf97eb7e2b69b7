"""Fields of dataclasses as options of an argparse parser."""

from __future__ import annotations

import argparse
import dataclasses
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def add_options(parser: argparse.ArgumentParser, dataclass_type: type) -> None:
    """Add an option for each field of a dataclass that is an argument of its `__init__`.

    A field may be of the types str, int, float, bool, `Literal`, a list of one of these, or of one of these types or
    None. It is required if it has no default, except for a bool, which is then False.

    Entries of a field's metadata:

    - "help": shown by `--help`, together with the default.
    - "metavar": how `--help` shows the value.
    - "aliases": further names of the option.
    - "repeat": a `list[str]` takes one value each time the option is given, not several at once.
    """
    types = get_type_hints(dataclass_type)
    for field in dataclasses.fields(dataclass_type):
        if field.init:
            _add_option(parser, field, types[field.name])


def parse_boolean(text: str) -> bool:
    """Return the boolean that a word names: true or false, yes or no, 1 or 0, ..."""
    for words, value in ((("yes", "true", "t", "y", "1"), True), (("no", "false", "f", "n", "0"), False)):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of an option: `--batch_size` and `--batch-size`."""
    return tuple(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: Any) -> None:
    names = [*spellings(field.name), *field.metadata.get("aliases", ())]
    keywords = {name: field.metadata[name] for name in ("help", "metavar") if name in field.metadata}
    has_factory = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if has_factory else field.default  # type: ignore[misc]  see has_factory
    kind = _without_none(kind)
    if kind is bool:
        default = False if default is dataclasses.MISSING else default
        parser.add_argument(*names, type=parse_boolean, nargs="?", const=True, default=default, **keywords)
        return
    if default is dataclasses.MISSING:
        keywords["required"] = True
    else:
        keywords["default"] = default
    if get_origin(kind) is Literal:
        keywords |= {"choices": get_args(kind), "type": _choice_type(get_args(kind))}
    elif get_origin(kind) is list and field.metadata.get("repeat"):
        keywords |= {"action": "append", "type": get_args(kind)[0]}
    elif get_origin(kind) is list:
        keywords |= {"nargs": "+", "type": get_args(kind)[0]}
    else:
        keywords["type"] = kind
    parser.add_argument(*names, **keywords)


def _without_none(kind: Any) -> Any:
    """Return the type of an option that may also be None: `str` for `str | None`."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    others = [member for member in get_args(kind) if member is not NoneType]
    if len(others) != 1:
        raise TypeError(f"expected a field of one type, or of one type or None, got {kind}; change the annotation")
    return others[0]


def _choice_type(choices: tuple[Any, ...]) -> Any:
    """Return a function that converts the text of a choice to its value."""
    values = {str(choice): choice for choice in choices}
    return lambda text: values.get(text, text)
