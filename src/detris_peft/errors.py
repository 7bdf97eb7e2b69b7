"""One-line error messages."""

from __future__ import annotations


def one_line(error: BaseException, first_line: bool = False) -> str:
    """Return an error's message in one line, or the name of its class if the message is empty.

    Args:
        error: the exception.
        first_line: keep the first line only, for libraries whose messages continue with advice.
    """
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if first_line else " ".join(text.split())
