"""Markdown of dataset cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# Characters that begin markup, or end a cell.
_PLAIN = str.maketrans("|<>[]`", "/()()'")


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
