"""Parse and check the fields of REFER references and annotations."""

from collections.abc import Mapping
from typing import Any

from ..errors import BadRowError, short
from ..fields import check_sentence, check_text


def field(record: Any, name: str, kind: type, where: str) -> Any:
    """Return a field of the given type; an integer may be stored as a float such as 12.0.

    Raises:
        BadRowError: the field is missing, of another type, or text that cannot be stored.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    if kind is int and as_int(value) is not None:
        return as_int(value)
    if kind is int or not isinstance(value, kind):
        raise BadRowError(
            f"{where}: expected '{name}' of type {kind.__name__}, got {short(value)}; fix it as in REFER's format"
        )
    if isinstance(value, str):
        check_text(value, f"{where}: '{name}'")
    return value


def as_int(value: Any) -> int | None:
    """Return an integer that fits into int64, also for floats such as 12.0; None for any other value."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def repeated_ids(references: list[dict], unique_sentences: bool) -> dict[int, str]:
    """Find references that repeat an earlier reference id or sentence id of the file.

    Returns:
        Error messages, keyed by index in `references`.
    """
    seen_references: dict[int, int] = {}  # keyed by id: index in `references`
    seen_sentences: dict[int, int] = {}  # keyed by id: id of the reference
    repeated = {}
    for index, reference in enumerate(references):
        ref_id = as_int(reference.get("ref_id"))
        if ref_id is None:
            continue  # reported when the row is read
        if ref_id in seen_references:
            repeated[index] = (
                f"reference {ref_id}: expected a unique 'ref_id', got {ref_id} at index {index}, used by an earlier "
                f"one at index {seen_references[ref_id]}"
            )
            continue
        seen_references[ref_id] = index
        sentences = reference.get("sentences")
        for sentence in sentences if unique_sentences and isinstance(sentences, list) else ():
            sent_id = as_int(sentence.get("sent_id")) if isinstance(sentence, Mapping) else None
            if sent_id in seen_sentences:
                repeated[index] = (
                    f"reference {ref_id}: expected a unique 'sent_id', got {sent_id}, used by an earlier one, of "
                    f"reference {seen_sentences[sent_id]}"
                )
            elif sent_id is not None:
                seen_sentences[sent_id] = ref_id
    return repeated


def read_sentences(reference: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
    """Return the sentences and their ids."""
    sentences = field(reference, "sentences", list, where)
    if not sentences:
        raise BadRowError(
            f"{where}: expected at least one sentence in 'sentences', got an empty list; add one or remove the "
            "reference"
        )
    texts, sent_ids = [], []
    for sentence in sentences:
        sent_id = field(sentence, "sent_id", int, f"{where}: a sentence")
        name = "raw" if "sent" not in sentence and "raw" in sentence else "sent"
        text = field(sentence, name, str, f"{where}: sentence {sent_id}")
        check_sentence(text, f"{where}: sentence {sent_id}")
        texts.append(text)
        sent_ids.append(sent_id)
    return texts, sent_ids


def read_category(reference: Mapping[str, Any], annotations: list[dict], where: str) -> int:
    """Return the category of the first target: from the reference, else from its annotation, else -1."""
    category = reference.get("category_id")
    if isinstance(category, list):
        category = category[0] if category else None
    if category is None:
        category = annotations[0].get("category_id") if annotations else None
    return -1 if category is None else field({"category_id": category}, "category_id", int, where)
