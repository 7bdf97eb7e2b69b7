"""Check values from files against the annotations of dataclass fields."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def has_type(value: Any, expected: Any) -> bool:
    """Return whether a value has an annotated type.

    An int is accepted as a float, and a tuple as a list, but a bool is not an int.
    """
    origin, members = get_origin(expected), get_args(expected)
    if expected is Any:
        return True
    if origin in (Union, UnionType):
        return any(has_type(value, member) for member in members)
    if origin is Literal:
        return any(type(value) is type(member) and value == member for member in members)
    if origin in (list, set):
        accepted = (list, tuple) if origin is list else set
        return isinstance(value, accepted) and all(has_type(item, members[0]) for item in value)
    if origin is tuple and members[1:] == (...,):
        return isinstance(value, (list, tuple)) and all(has_type(item, members[0]) for item in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(members) and all(map(has_type, value, members))
    if origin is dict:
        return isinstance(value, dict) and all(
            has_type(key, members[0]) and has_type(item, members[1]) for key, item in value.items()
        )
    if expected in (None, NoneType):
        return value is None
    if origin is not None:  # of other generic types, only the type itself is checked
        return isinstance(value, origin)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


def describe_type(expected: Any) -> str:
    """Return an annotated type in words, for error messages."""
    origin, members = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(describe_type, members)))
    if origin is Literal:
        return " or ".join(map(repr, members))
    if origin in (list, set, tuple, dict):
        return f"{origin.__name__}[{', '.join(map(describe_type, members))}]"
    return "None" if expected in (None, NoneType) else "..." if expected is ... else expected.__name__
