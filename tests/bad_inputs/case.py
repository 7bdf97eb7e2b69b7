"""One row of the table of bad inputs, and helpers that write the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        name: short description, unique in the table.
        command: the arguments of `detris`, split like a shell does. The working directory is a copy of `workspace`
            (see `conftest.py`): `data/` (RefShapes), `folder/` (image folder dataset), `run/best` (a checkpoint),
            `backbones/`, `photo.png`.
        expected: parts of the error line; all of them must occur.
        prepare: writes the input below the working directory.
        code: exit code: 1, or 2 for usage errors.
        may_write: names below the working directory that the command may create or change.
        subprocess: run the installed command in a process of its own.
    """

    name: str
    command: str
    expected: tuple[str, ...]
    prepare: Prepare | None = None
    code: int = 1
    may_write: tuple[str, ...] = ()
    subprocess: bool = False


def write(name: str, content: str | bytes | Any) -> Prepare:
    """Return a function that writes a file: bytes, text, or anything else as JSON."""

    def prepare(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    return prepare


def edit_json(name: str, **changes: Any) -> Prepare:
    """Return a function that changes fields of a JSON file."""

    def prepare(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return prepare


def steps(*prepares: Prepare) -> Prepare:
    """Return a function that calls several such functions in order."""

    def prepare(folder: Path) -> None:
        for step in prepares:
            step(folder)

    return prepare
