"""Error kinds for invalid rows, shared by `detris data check`, training and evaluation."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Rows with an error of one of these kinds are never used for training.
BAD_KINDS = (
    "image_missing",
    "image_damaged",
    "mask_empty",  # no foreground pixels, although the row is not marked as no_target
    "mask_out_of_frame",  # the mask is entirely outside the image
    "mask_malformed",  # neither polygons nor an RLE, or created for a different image size
    "row_malformed",  # a field is missing, blank or of the wrong type, or the dataset's files do not match
    "duplicate_id",
)

KIND_NOTE = "kind of bad row: "

_notices: ContextVar[list[tuple[str, str]] | None] = ContextVar("notices", default=None)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


class BadRowError(ValueError):
    """Error for a row that cannot be used for training; the message names the row and the file on one line.

    Args:
        message: what was expected, what was found, and how to fix it.
        kind: one of `BAD_KINDS`.
    """

    def __init__(self, message: str, kind: str = "row_malformed") -> None:
        # File names and fields may contain control characters. Line breaks are kept: PyTorch adds a traceback.
        printable = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(printable))
        self.kind = kind
        # PEP 678 note, so that the kind survives in worker tracebacks (Python >= 3.11).
        self.__notes__ = [f"{KIND_NOTE}{kind}"]


class MissingImageError(BadRowError, FileNotFoundError):
    """Error for a row whose image file does not exist."""

    def __init__(self, message: str, kind: str = "image_missing") -> None:
        super().__init__(message, kind)


class NoSentencesError(ValueError):
    """Error for labeled images without any sentence; the message says how to get sentences."""


class BadRows(list[BadRowError]):
    """Collects invalid rows instead of raising; accepted by every reader as `bad_rows`.

    A reader that gets None raises the first invalid row. A reader that gets a `BadRows` skips invalid rows and appends
    one error for each.
    """

    def counts(self) -> dict[str, int]:
        """Return the number of errors of each kind that occurred, in the order of `BAD_KINDS`."""
        found = [error.kind for error in self]
        return {kind: found.count(kind) for kind in BAD_KINDS if kind in found}


def reject(error: BadRowError, bad_rows: BadRows | None) -> None:
    """Append the error to `bad_rows`, or raise it if `bad_rows` is None."""
    if bad_rows is None:
        raise error
    bad_rows.append(error)


@contextmanager
def collect_notices() -> Iterator[list[tuple[str, str]]]:
    """Collect what readers notice about valid rows, as (kind, message); without it, notices are discarded."""
    notices: list[tuple[str, str]] = []
    token = _notices.set(notices)
    try:
        yield notices
    finally:
        _notices.reset(token)


def notice(kind: str, message: str) -> None:
    """Report something unusual about a row that is valid; see `collect_notices`."""
    notices = _notices.get()
    if notices is not None:
        notices.append((kind, message))


def short(value: Any, limit: int = 60) -> str:
    """Return the repr of a value of any size in at most `limit` characters; "nothing" for None."""
    if value is None:
        return "nothing"
    try:
        # A number is shown in full; the repr of a large container could take minutes.
        text = repr(value) if isinstance(value, (float, str)) and len(str(value)) <= limit else _repr.repr(value)
    except ValueError:  # Python does not convert integers of more than 4300 digits
        text = f"a {type(value).__name__} with an integer of thousands of digits"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def join_names(names: Iterable[str]) -> str:
    """Join names with commas for an error message; return "none" for no names."""
    return ", ".join(names) or "none"
