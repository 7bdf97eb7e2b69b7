"""Markdown of dataset cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

# Characters that begin markup, or end a cell.
_PLAIN = str.maketrans("|<>[]`", "/()()'")


def header(name: str, tags: Iterable[str] = (), **fields: Any) -> str:
    """Return the metadata that a card begins with.

    Args:
        name: name of the dataset.
        tags: further tags.
        fields: further fields.
    """
    tags = ["referring-image-segmentation", "detris_peft", *tags]
    data = DatasetCardData(pretty_name=name, task_categories=["image-segmentation"], tags=tags, **fields)
    return f"---\n{data.to_yaml()}\n---"


def license_table(licenses: Iterable[Counter[str]]) -> str | None:
    """Return a table of the images per license, "" for none; None if no image has a license.

    Args:
        licenses: images per license, for each split.
    """
    total: Counter[str] = sum(licenses, Counter())
    if not any(total):
        return None
    return table(("license", "images"), [(cell(code(name)) or "not named", total[name]) for name in sorted(total)])


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; integers get separators of thousands."""
    lines = [headers, ("---",) * len(headers), *rows]
    cells = [[f"{item:,}" if isinstance(item, int) else str(item) for item in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def cell(text: str) -> str:
    """Return text of other people's files so that it stays in its cell and is not markup."""
    return text.translate(_PLAIN)


def code(text: str) -> str:
    """Return text of other people's files so that it fits between backticks."""
    return "".join(c if c.isprintable() else " " for c in text).replace("`", "'")
