"""Fields of references and annotations, whatever tool wrote them; what is wrong with one is said in one line."""

from collections.abc import Mapping
from typing import Any

from ..errors import BadRowError


def field(record: Any, name: str, kind: type, where: str) -> Any:
    """A field of this type.

    Raises:
        BadRowError: it is missing or of another type.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    if kind is int and whole(value) is not None:
        return whole(value)
    if kind is not int and isinstance(value, kind) and not (isinstance(value, str) and not _is_writable(value)):
        return value
    found = "is missing" if value is None else f"is {value!r:.60}"
    raise BadRowError(f"{where}: '{name}' {found}: it must be of type {kind.__name__}, as in REFER's layout")


def whole(value: Any) -> int | None:
    """A whole number that fits a column, also where a tool wrote it as 12.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def repeated_ids(references: list[dict], unique_sentences: bool) -> dict[int, str]:
    """The places in the file whose id, or whose sentence's id, stood before."""
    references_seen, sentences_seen, repeated = set(), set(), {}
    for place, reference in enumerate(references):
        ref_id = whole(reference.get("ref_id"))
        if ref_id is None:
            continue  # `_row` says what it lacks
        if ref_id in references_seen:
            repeated[place] = f"reference {ref_id}: 'ref_id' {ref_id} stands there before"
            continue
        references_seen.add(ref_id)
        sentences = reference.get("sentences")
        for sentence in sentences if unique_sentences and isinstance(sentences, list) else ():
            sent_id = whole(sentence.get("sent_id")) if isinstance(sentence, Mapping) else None
            if sent_id in sentences_seen:
                repeated[place] = f"reference {ref_id}: 'sent_id' {sent_id} stands there before"
            elif sent_id is not None:
                sentences_seen.add(sent_id)
    return repeated


def read_sentences(reference: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
    """The sentences and their ids."""
    sentences = field(reference, "sentences", list, where)
    if not sentences:
        raise BadRowError(f"{where}: 'sentences' is empty: give it a sentence or remove the reference")
    texts, sent_ids = [], []
    for sentence in sentences:
        sent_id = field(sentence, "sent_id", int, f"{where}: a sentence")
        name = "raw" if "sent" not in sentence and "raw" in sentence else "sent"
        text = field(sentence, name, str, f"{where}: sentence {sent_id}")
        if not text.strip():
            raise BadRowError(f"{where}: sentence {sent_id} is blank ({text!r}): write it or remove it")
        texts.append(text)
        sent_ids.append(sent_id)
    return texts, sent_ids


def read_category(reference: Mapping[str, Any], annotations: list[dict], where: str) -> int:
    """Of the first target: the reference's, else the annotation's, else -1."""
    category = reference.get("category_id")
    if isinstance(category, list):
        category = category[0] if category else None
    if category is None:
        category = annotations[0].get("category_id") if annotations else None
    return -1 if category is None else field({"category_id": category}, "category_id", int, where)


def _is_writable(text: str) -> bool:
    """False for halves of a character (lone surrogates), which no file or column can hold."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
