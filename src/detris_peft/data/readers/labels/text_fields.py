"""Names of the fields in which users of labeling tools write sentences, and the sentences in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# If an object has several, the first that is filled is used. Upper case, and spaces or hyphens for underscores, match.
TEXT_FIELDS = (
    "sentences",
    "sentence",
    "referring_expressions",
    "referring_expression",
    "expressions",
    "expression",
    "captions",
    "caption",
    "descriptions",
    "description",
    "phrases",
    "phrase",
    "texts",
    "text",
)
# What tools write for a checkbox, or for a select of yes and no.
_FLAGS = {"true": True, "false": False}


def find_text(attributes: Mapping[Any, Any]) -> tuple[str, Any] | None:
    """Return the sentences among the attributes of an object.

    Returns:
        The name of the attribute, and its sentences as `split_sentences` returns them; None if no attribute has one of
        the names `TEXT_FIELDS`, or all that have are blank.
    """
    names = {_normalized(name): name for name in reversed(list(attributes)) if isinstance(name, str)}
    for field in TEXT_FIELDS:
        sentences = split_sentences(attributes[names[field]]) if field in names else None
        if sentences is not None:
            return names[field], sentences
    return None


def split_sentences(value: Any) -> Any:
    """Return the sentences in a field: the lines of a text, or the items of a list, without blank ones.

    A semicolon or a comma does not separate sentences, as a sentence may contain them.

    Returns:
        A list; None if the value is blank. A value that is not text, or the text "true" or "false", as a bool or as
        it is, so that `read_sentences` raises its error.
    """
    if isinstance(value, str):
        if value.strip().lower() in _FLAGS:
            return _FLAGS[value.strip().lower()]
        return [line.strip() for line in value.splitlines() if line.strip()] or None
    if isinstance(value, (list, tuple)):
        return [item for item in value if not (item is None or (isinstance(item, str) and not item.strip()))] or None
    return value


def is_text_field(name: Any) -> bool:
    """Return whether `find_text` reads sentences from a field of this name."""
    return isinstance(name, str) and _normalized(name) in TEXT_FIELDS


def _normalized(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
