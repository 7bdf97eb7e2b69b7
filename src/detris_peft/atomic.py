"""Files that are there whole or not at all, whenever the process dies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_text(file: Path, text: str) -> None:
    """In one piece: a reader sees the old content or the new."""
    aside = file.with_name(f".{file.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """As `write_text`."""
    write_text(file, json.dumps(content, indent=2) + "\n")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder aside, which takes the place of `folder` when the block ends well and vanishes when it does not."""
    try:
        yield begin(folder)
        commit(folder)
    finally:
        remove(aside(folder))


def begin(folder: Path) -> Path:
    """An empty folder beside `folder`, to be written and then committed."""
    remove(aside(folder))
    aside(folder).mkdir(parents=True)
    return aside(folder)


def commit(folder: Path) -> None:
    """Put what was written aside in the place of `folder`, once all of it is on the disk.

    An older `folder` is moved away first and removed last; if the process dies in between, `restore` brings it back.
    """
    for path in aside(folder).rglob("*"):
        _sync(path)
    _sync(aside(folder))
    if folder.exists():
        remove(_former(folder))
        folder.rename(_former(folder))
    aside(folder).rename(folder)
    _sync(folder.parent)
    remove(_former(folder))


def restore(folder: Path) -> None:
    """Undo what a process left that died while it replaced `folder`."""
    if _former(folder).exists() and not folder.exists():
        _former(folder).rename(folder)
    remove(_former(folder))
    remove(aside(folder))
    for left in folder.parent.glob(f".{aside(folder).name}-*"):  # where a checkpoint was itself being written aside
        remove(left)


def restore_all(parent: Path, pattern: str) -> None:
    """`restore` every folder of that pattern that was being replaced."""
    for former in parent.glob(f".{pattern}.former"):
        restore(parent / former.name.removeprefix(".").removesuffix(".former"))


def retire(folder: Path) -> None:
    """Remove a whole folder so that it is never seen half gone."""
    remove(aside(folder))
    folder.rename(aside(folder))  # what is found there is rubbish
    remove(aside(folder))


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def aside(folder: Path) -> Path:
    """Where `folder` is written before it gets its name."""
    return folder.with_name(f".{folder.name}.part")


def write_manifest(folder: Path) -> None:
    """Note size and SHA-256 of every file, so that a damaged one is found before it is loaded."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    content = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fault(folder: Path) -> str | None:
    """What is wrong with a folder that carries a manifest; None if every file is as it was written."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, noted in content.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != noted["size"]:
                return f"{name} has {file.stat().st_size} bytes, not {noted['size']}"
            if _sha256(file) != noted["sha256"]:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
