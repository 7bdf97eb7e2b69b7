"""A target of fuzzing, and helpers that write its files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy
from PIL import Image

from detris_peft.data import decode_row

ALLOWED = (OSError, ValueError, pickle.UnpicklingError)
HEIGHT, WIDTH = 20, 30


@dataclass(frozen=True)
class Target:
    """A reader and the inputs that it is given.

    Args:
        read: reads the bytes.
        seeds: valid inputs, of which `read` accepts each.
        inputs: mutated and generated inputs.
    """

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    inputs: Callable[[list[bytes]], SearchStrategy[bytes]]


def written(name: str, data: bytes) -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def image_file(name: str) -> None:
    if not Path(name).exists():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(name)


def decode_rows(rows) -> None:
    for row in rows:
        decode_row(row)
