"""Atomic, crash-safe writes: a reader sees the old content or the complete new one, never a part of it.

This is the only module that writes through temporary paths:

- `write_text`, `write_json`, `atomic_write_file`: one file;
- `atomic_write_dir`: a folder that replaces an older one;
- `atomic_update_dir`: files that are added to a folder, which may hold others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(file, json.dumps(content, indent=2) + "\n")


@contextmanager
def atomic_write_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `file` on success and is removed on error."""
    temporary = staging_path(file)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_update_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty sibling folder whose files move into `folder` on success and are removed on error.

    Other files in `folder` stay. Each file is replaced atomically; the folder as a whole is not.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield staging
        for file in sorted(p for p in staging.rglob("*") if p.is_file()):
            target = folder / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_write_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` on success and is removed on error."""
    try:
        yield start_staging(folder)
        commit(folder)
    finally:
        remove(staging_path(folder))


def start_staging(folder: Path) -> Path:
    """Create and return an empty staging folder next to `folder`, to be written and then committed."""
    remove(staging_path(folder))
    staging_path(folder).mkdir(parents=True)
    return staging_path(folder)


def commit(folder: Path) -> None:
    """Replace `folder` with its staging folder, after syncing it to disk.

    An older `folder` is renamed first and removed last. If the process dies in between, `recover` restores it.
    """
    for path in staging_path(folder).rglob("*"):
        _sync(path)
    _sync(staging_path(folder))
    if folder.exists():
        remove(_previous(folder))
        folder.rename(_previous(folder))
    staging_path(folder).rename(folder)
    _sync(folder.parent)
    remove(_previous(folder))


def recover(folder: Path) -> None:
    """Recover from a crash during `commit`: restore the older folder and remove temporary ones."""
    if _previous(folder).exists() and not folder.exists():
        _previous(folder).rename(folder)
    remove(_previous(folder))
    remove(staging_path(folder))
    for stale in folder.parent.glob(f".{staging_path(folder).name}-*"):  # left by `atomic_update_dir`
        remove(stale)


def recover_all(parent: Path, pattern: str) -> None:
    """Call `recover` for every folder in `parent` that matches the pattern and was being replaced."""
    for previous in parent.glob(f".{pattern}.previous"):
        recover(parent / previous.name.removeprefix(".").removesuffix(".previous"))


def remove_atomically(folder: Path) -> None:
    """Remove a folder so that no reader sees it half removed: rename, then delete."""
    remove(staging_path(folder))
    folder.rename(staging_path(folder))  # anything at that path is stale
    remove(staging_path(folder))


def remove(folder: Path) -> None:
    """Remove a folder if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


def staging_path(path: Path) -> Path:
    """Return the temporary sibling under which a file or folder is written."""
    return path.with_name(f".{path.name}.part")


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` with the size and SHA-256 of every file, so that damage is found before loading."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    content = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def manifest_problem(folder: Path) -> str | None:
    """Return the first mismatch between a folder and its manifest, or None if every file is intact."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in content.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes, expected {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
