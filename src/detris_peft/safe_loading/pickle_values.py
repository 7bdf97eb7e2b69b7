"""Values in a pickle: decoding of text and numbers, and which values may be keys."""

from __future__ import annotations

import codecs
from typing import Any

from .limits import MAX_INTEGER_BYTES, MAX_INTEGER_KEY


def printable(text: str) -> str:
    """Return the start of a text from a file, without line breaks and control characters, for error messages."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def check_key(value: Any) -> Any:
    """Return a key of a dict or an item of a set.

    Tuples are refused, because hashing a nested one recurses in C, and so are large integers and floats, which can be
    chosen to have equal hashes.
    """
    if type(value) in (str, bytes, bool, type(None)) or (type(value) is int and abs(value) <= MAX_INTEGER_KEY):
        return value
    raise ValueError(f"a key that is neither text nor an integer but {type(value).__name__}")


def python_2_text(text: bytes) -> str:
    """Decode a byte string of Python 2 by itself, so that one in Latin-1 does not garble the others."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def quoted_text(text: bytes) -> str:
    quote = text[:1]
    if len(text) < 2 or quote not in (b"'", b'"') or text[-1:] != quote:
        raise ValueError("a string without quotes")
    content = text[1:-1]
    if b"\\" in content:
        content = codecs.escape_decode(content)[0]  # type: ignore[attr-defined]
    return python_2_text(content)


def decimal(text: bytes) -> int:
    text = text.strip().removesuffix(b"L")
    if len(text) > 2 * MAX_INTEGER_BYTES:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def integer_or_boolean(text: bytes) -> int | bool:
    return text == b"01" if text in (b"00", b"01") else decimal(text)


def binary_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
