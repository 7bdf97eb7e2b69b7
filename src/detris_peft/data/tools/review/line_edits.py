"""Edits of one object: its sentences, and the flag of a bad mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....safe_loading import parse_json
from ...errors import BadRowError, short
from ...fields import check_sentence
from ...readers.folder import BAD_MASK, sentence_field
from .json_text import remove_field, set_field

KINDS = "kinds"  # kinds of the sentences that `detris data describe` made, in their order
WRITTEN = "written"  # kind of a sentence that a person wrote

# A sentence of the edited object: the index of the saved sentence that it replaces or None if it is new, and its text
# or None if it is unchanged.
SentenceEdit = tuple[int | None, str | None]


@dataclass
class LineEdit:
    """Result of an edit.

    Args:
        text: the object as JSON.
        indices: for each sentence of the edit its index among the saved ones; None if it is left out.
        messages: why sentences are not saved, by their position in the edit.
    """

    text: str
    indices: list[int | None]
    messages: dict[int, str]


def edit_line(text: str, sentences: Sequence[SentenceEdit], bad_mask: bool, where: str) -> LineEdit:
    """Return the JSON object of a line with other sentences; other fields keep their text.

    A sentence that is not valid is not saved: a new one is left out, an edited one keeps its saved text.

    Args:
        text: the object as JSON.
        sentences: all sentences of the object after the edit, in order; see `SentenceEdit`.
        bad_mask: whether the mask is bad, so that training must not use the object.
        where: file and line, for messages.

    Raises:
        ValueError: no sentence would remain, an index is wrong, or the sentences of the line are neither texts nor
            objects with a text.
    """
    line = parse_json(text, where)
    try:
        items = sentence_items(line, where)
    except BadRowError:
        if sentences:
            raise
        items = []  # only the flag can be changed
    _check_indices([index for index, _ in sentences], len(items))
    kinds = line.get(KINDS)
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(items) else None
    edit, kept, kept_kinds = LineEdit(text, [], {}), [], []
    for position, (index, sentence) in enumerate(sentences):
        item, kind = (None, WRITTEN) if index is None else (items[index], kinds[index] if kinds else None)
        sentence = None if sentence is None else " ".join(sentence.split())
        if sentence is not None and sentence != sentence_text(item):
            try:
                check_sentence(sentence, f"sentence {position + 1} is not saved")
                item, kind = _with_text(item, sentence, items), WRITTEN
            except BadRowError as error:
                edit.messages[position] = str(error)
        edit.indices.append(None if item is None else len(kept))
        if item is not None:
            kept.append(item)
            kept_kinds.append(kind)
    if not kept and items:
        raise ValueError(
            f"{where}: expected at least one sentence, got none; write another one, or flag the object as a bad mask."
        )
    if kept != items:
        edit.text = _with_sentences(text, line, kept)
        if kinds is not None:
            edit.text = set_field(edit.text, KINDS, kept_kinds)
    if bad_mask != is_flagged(line):
        edit.text = set_field(edit.text, BAD_MASK, True) if bad_mask else remove_field(edit.text, BAD_MASK)
    return edit


def sentence_items(line: Mapping[str, Any], where: str) -> list[Any]:
    """Return the sentences of a line: texts, or objects with a text as "sent" or "raw"; empty if it has none.

    Raises:
        BadRowError: one of them is neither.
    """
    name = sentence_field(line)
    value = line.get(name)
    items = [] if value is None else [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(items, list) or not all(isinstance(sentence_text(item), str) for item in items):
        raise BadRowError(f"{where}: expected a list of texts as '{name}', got {short(value)}; fix it in an editor")
    return items


def sentence_text(item: Any) -> Any:
    """Return the text of one of the `sentence_items`."""
    return item.get("sent", item.get("raw")) if isinstance(item, Mapping) else item


def is_flagged(line: Mapping[str, Any]) -> bool:
    """Return whether a person flagged the mask of a line."""
    return line.get(BAD_MASK) is True


def _check_indices(indices: Sequence[Any], count: int) -> None:
    given = [index for index in indices if index is not None]
    valid = all(type(index) is int and 0 <= index < count for index in given)
    if not valid or len(set(given)) < len(given):
        raise ValueError(f"sentences: expected different indices from 0 to {count - 1}, got {short(given)}; reload.")


def _with_text(item: Any, text: str, items: Sequence[Any]) -> Any:
    """Return one of the `items` with another text; a new one (None) has their form."""
    if item is None:
        return {"sent": text} if items and isinstance(items[0], Mapping) else text
    return {**item, "sent" if "sent" in item else "raw": text} if isinstance(item, Mapping) else text


def _with_sentences(text: str, line: Mapping[str, Any], items: list[Any]) -> str:
    name = sentence_field(line)
    single = isinstance(line.get(name), (str, Mapping))
    if single and len(items) == 1:
        return set_field(text, name, items[0])
    if single and name == "sentence":
        return set_field(remove_field(text, "sentences"), "sentences", items, replaced="sentence")
    return set_field(text, name if line.get(name) is not None else "sentences", items)
