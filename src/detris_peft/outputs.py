"""Rules for what a command may write: `--overwrite` replaces an existing output, and only one that detris_peft wrote.

Folders written by detris_peft contain the file `.detris_peft`, whose content is the kind of folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MARKER = ".detris_peft"
_MARKER_LENGTH = 64  # characters read of a marker
_BACKBONE_FILES = ("config.json", "model.safetensors")  # of a converted backbone
_CARD_LENGTH = 100_000  # characters read of a dataset card


def mark_folder(folder: Path, kind: str) -> None:
    """Mark a folder as written by detris_peft.

    Args:
        folder: an existing folder.
        kind: what it contains, such as `"checkpoint"`, `"run"`, `"dataset"` or `"backbone"`.
    """
    (folder / MARKER).write_text(kind + "\n", encoding="utf-8")


def is_marked(folder: Path) -> bool:
    """Return whether detris_peft wrote this folder."""
    return folder_kind(folder) is not None


def folder_kind(folder: Path) -> str | None:
    """Return what kind of folder detris_peft wrote here, or None if it did not write this folder.

    Folders that were written before the marker existed are recognized by their content.
    """
    if not folder.is_dir():
        return None
    marker = folder / MARKER
    if marker.is_file():
        return _head(marker, _MARKER_LENGTH).strip() or "folder"
    is_checkpoint = (folder / "head.safetensors").is_file() and _model_type(folder / "config.json") == "detris"
    # Later ones have a manifest, and no marker if they were saved into a folder with other files.
    if is_checkpoint and not (folder / "manifest.json").exists():
        return "checkpoint"
    if (folder / "run.json").is_file() and any((folder / name).is_dir() for name in ("checkpoints", "best", "last")):
        return "run"
    if any(folder.glob("data/*.parquet")) and "`detris data convert`" in _head(folder / "README.md", _CARD_LENGTH):
        return "dataset"
    if folder.name in ("dino", "clip") and {path.name for path in folder.iterdir()} == set(_BACKBONE_FILES):
        return "backbone"
    return None


def check_output_file(
    file: str | os.PathLike, overwrite: bool, inputs: tuple[str | os.PathLike, ...] = (), option: str = "--output"
) -> None:
    """Raise a ValueError if a command must not or cannot write this file.

    Args:
        file: the file to write.
        overwrite: whether an existing file may be replaced.
        inputs: files that the command reads; they are never replaced.
        option: the option that names the file, for the message.
    """
    path = Path(file)
    if path.is_dir() or os.fspath(file).endswith(os.sep):
        raise ValueError(f"{option} {file}: expected a file to write, got a folder; add a file name.")
    _check_parent(path, option)
    if not os.path.lexists(path):
        return
    for name in inputs:
        if path.exists() and Path(name).exists() and path.samefile(name):
            raise ValueError(f"{option} {file}: expected another file than the input; choose another name.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {file}: expected a regular file, got a device or a pipe; choose another name.")
    if not overwrite:
        raise ValueError(
            f"{option} {file}: expected a new file, got an existing one; add --overwrite, or choose another name."
        )


def check_output_folder(
    folder: str | os.PathLike,
    overwrite: bool,
    option: str = "--output",
    otherwise: str = "choose another folder",
    kind: str | None = None,
) -> None:
    """Raise a ValueError if a command must not or cannot write this folder.

    An empty or missing folder may always be written. A folder that detris_peft wrote may be replaced with
    `overwrite`; any other folder never.

    Args:
        folder: the folder to write.
        overwrite: whether an existing folder may be replaced.
        option: the option that names the folder, for the message.
        otherwise: alternatives to --overwrite, for the message.
        kind: what is written, as for `mark_folder`; a folder of another kind is not replaced. None accepts all kinds.
    """
    path = Path(folder)
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{option} {folder}: expected a folder to write, got a file; choose another name.")
    _check_parent(path / "file", option)
    if not path.is_dir() or not any(path.iterdir()):
        return
    found = folder_kind(path)
    if found is None:
        raise ValueError(
            f"{option} {folder}: expected an empty folder or one that detris wrote, got a folder with other files; "
            "choose another folder."
        )
    if kind is not None and found != kind:
        raise ValueError(
            f"{option} {folder}: expected the folder of a {kind}, got that of a {found}; choose another folder."
        )
    if not overwrite:
        raise ValueError(
            f"{option} {folder}: expected a new folder, got an existing one; add --overwrite, or {otherwise}."
        )


def _check_parent(path: Path, option: str) -> None:
    """Raise a ValueError if the folder of a path cannot be written, or if it cannot be created."""
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise ValueError(f"{option}: expected a path in a folder, got {parent}, which is a file; change the path.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: expected a writable folder, got {parent}, which is not; choose another one.")


def _head(file: Path, length: int) -> str:
    """Return the first characters of a text file; an empty string if there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(length)
    except OSError:
        return ""


def _model_type(file: Path) -> str | None:
    """Return the model type that a config names, or None if it names none."""
    try:
        content = json.loads(_head(file, 10_000_000))
    except (ValueError, RecursionError):
        return None
    return content.get("model_type") if isinstance(content, dict) else None
