"""Values against annotations, also those of adapter types that users register."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest

from detris_peft.field_types import describe_type, has_type


@pytest.mark.parametrize(
    ("expected", "accepted", "refused", "description"),
    [
        (int, 3, True, "int"),
        (float, 3, "3", "float"),
        (list[int] | None, (1, 2), ["a"], "list[int] or None"),
        (tuple[int, str], [1, "a"], [1], "tuple[int, str]"),
        (tuple[int, ...], [1, 3, 7], [1, "a"], "tuple[int, ...]"),
        (tuple[int, ...] | None, (), 3, "tuple[int, ...] or None"),
        (dict[str, int], {"a": 1}, {"a": "b"}, "dict[str, int]"),
        (Sequence[int], [1], 3, "Sequence"),
        (Callable[[int], int], abs, 3, "Callable"),
        (Literal["a", 1], "a", True, "'a' or 1"),
    ],
)
def test_types(expected, accepted, refused, description):
    assert has_type(accepted, expected)
    assert not has_type(refused, expected)
    assert describe_type(expected) == description
