"""`manifest.json`: size and SHA-256 of the files of a folder, so that damage is found before loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .atomic import MANIFEST, write_json

_MAX_SIZE = 16 * 2**20  # bytes


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` with an entry for every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    content = {path.relative_to(folder).as_posix(): file_entry(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def update_manifest(folder: Path, name: str) -> None:
    """Replace the entry of one file in a folder's manifest, if the folder has one."""
    if (folder / MANIFEST).is_file():
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        write_json(folder / MANIFEST, {**content, name: file_entry(folder / name)})


def file_entry(file: Path) -> dict[str, Any]:
    """Return the entry of a file in a manifest: its size in bytes and its SHA-256."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def manifest_problem(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """Return the first mismatch between a folder and its manifest, or None if every file is intact.

    Args:
        folder: the folder.
        names: relative names of the files to check; default: all files in the manifest.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.stat().st_size > _MAX_SIZE:
        return f"{MANIFEST} is not a file of at most {_MAX_SIZE // 2**20} MiB"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        for name in content if names is None else names:
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if name not in content:
                return f"{name} is not listed"
            if file.stat().st_size != content[name]["size"]:
                return f"{name} has {file.stat().st_size} bytes, expected {content[name]['size']}"
            if file_entry(file)["sha256"] != content[name]["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None
