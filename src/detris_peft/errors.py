"""One-line error messages, and recognition of errors."""

from __future__ import annotations


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
