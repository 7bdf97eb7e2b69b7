"""Changes of single fields in JSON text, which keep everything else: spacing, order, spelling of numbers.

The text must have been accepted by `parse_json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode  # returns the value that starts at a position, and the position after it


class FieldSpan(NamedTuple):
    """Positions of a field of a JSON object."""

    name: str
    start: int  # of the quoted name
    value: int
    end: int  # after the value


def array_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of every item of a JSON array."""
    at = _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "]":
        end = _decode(text, at)[1]
        yield at, end
        at = _after_comma(text, end)


def object_spans(text: str) -> list[FieldSpan]:
    """Return the positions of every field of a JSON object."""
    spans, at = [], _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "}":
        name, colon = _decode(text, at)
        value = _skip(text, _skip(text, colon) + 1)
        end = _decode(text, value)[1]
        spans.append(FieldSpan(name, at, value, end))
        at = _after_comma(text, end)
    return spans


def set_field(text: str, name: str, value: Any, replaced: str | None = None) -> str:
    """Return the text of a JSON object with another value of a field, which is added at the end if it is missing.

    Args:
        text: the object.
        name: name of the field.
        value: its new value.
        replaced: name of an existing field whose place the field takes.
    """
    spans = object_spans(text)
    field = f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
    for span in spans:
        if span.name == replaced:
            return text[: span.start] + field + text[span.end :]
        if span.name == name and replaced is None:
            return text[: span.value] + json.dumps(value, ensure_ascii=False) + text[span.end :]
    end = spans[-1].end if spans else _skip(text, 0) + 1
    return text[:end] + (", " if spans else "") + field + text[end:]


def remove_field(text: str, name: str) -> str:
    """Return the text of a JSON object without a field; the same text if it has no such field."""
    spans = object_spans(text)
    for index, span in enumerate(spans):
        if span.name == name:
            if index:
                return text[: spans[index - 1].end] + text[span.end :]
            return text[: span.start] + text[spans[1].start if len(spans) > 1 else span.end :]
    return text


def _skip(text: str, at: int) -> int:
    """Return the position of the next character that is not whitespace."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after_comma(text: str, end: int) -> int:
    at = _skip(text, end)
    return at + 1 if text[at] == "," else at
