"""One-line error messages, recognition of errors, and the check of path arguments."""

from __future__ import annotations

import os
from typing import Any


def one_line(error: BaseException, first_line: bool = False) -> str:
    """Return an error's message in one line, or the name of its class if the message is empty.

    Args:
        error: the exception.
        first_line: keep the first line only, for libraries whose messages continue with advice.
    """
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if first_line else " ".join(text.split())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the CPU or of an accelerator was exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # On CPU, PyTorch raises a plain RuntimeError: "can't allocate memory", "not enough memory".
    text = str(error)
    return isinstance(error, RuntimeError) and "memory" in text and ("allocate" in text or "not enough" in text)


def check_path(name: str, value: Any) -> None:
    """Raise a TypeError that names the argument if a value is not a path.

    Args:
        name: the argument.
        value: its value.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path (str or os.PathLike), got {type(value).__name__}; pass one.")
