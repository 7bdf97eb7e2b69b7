"""safetensors files: the header is checked before tensors are read."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import one_line
from .limits import MAX_SAFETENSORS_HEADER, MAX_TENSOR_DIMENSIONS
from .text_files import parse_json

_LENGTH_BYTES = 8  # a safetensors file starts with the length of its header


def read_safetensors(file: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file into memory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, incomplete or not a safetensors file.
    """
    check_safetensors(file)
    try:
        return load_file(file)
    # The library raises any of these for headers that contradict the data or name a type that torch lacks.
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _damaged(file, one_line(error, first_line=True)[:200]) from None


def check_safetensors(file: str | os.PathLike) -> None:
    """Check the header of a safetensors file: its length, JSON, and that the offsets are inside the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the header does not fit the file; nothing was allocated for its tensors.
    """
    path = Path(file)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{file}: expected a safetensors file, got {got}; check the path.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise _damaged(file, f"only {size} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - _LENGTH_BYTES, MAX_SAFETENSORS_HEADER):
            raise _damaged(file, f"a header of {length:,} bytes in {size:,} bytes")
        header = stream.read(length)
    try:
        content = parse_json(header.decode("utf-8"), f"{file}: header of the safetensors file")
    except UnicodeDecodeError:
        raise _damaged(file, "a header that is not UTF-8") from None
    if not isinstance(content, dict):
        raise _damaged(file, "a header that is not a JSON object")
    available = size - _LENGTH_BYTES - length
    for name, entry in content.items():
        if name != "__metadata__" and not _is_valid(entry, available):
            raise _damaged(file, f"no valid shape and offsets for tensor {name[:80]!r}")


def _is_valid(entry: Any, available: int) -> bool:
    """Return whether an entry of the header has a shape, and two ascending offsets inside the data."""
    if not isinstance(entry, dict):
        return False
    shape, offsets = (_sizes(entry.get(name)) for name in ("shape", "data_offsets"))
    if shape is None or offsets is None or len(shape) > MAX_TENSOR_DIMENSIONS or len(offsets) != 2:
        return False
    return offsets[0] <= offsets[1] <= available


def _sizes(value: Any) -> list[int] | None:
    """Return a list of integers that are not negative, or None for other values."""
    is_valid = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return value if is_valid else None


def _damaged(file: str | os.PathLike, problem: str) -> ValueError:
    return ValueError(f"{file}: expected a complete safetensors file, got {problem}; copy or download it again.")
