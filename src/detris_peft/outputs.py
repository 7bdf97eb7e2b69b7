"""Rules for what a command may write: `--overwrite` replaces an existing output, and only one that detris_peft wrote.

Folders written by detris_peft contain the file `.detris_peft`, whose content is the kind of folder.
"""

from __future__ import annotations

import os
from pathlib import Path

MARKER = ".detris_peft"


def mark_folder(folder: Path, kind: str) -> None:
    """Mark a folder as written by detris_peft.

    Args:
        folder: an existing folder.
        kind: what it contains, such as `"checkpoint"`, `"run"`, `"dataset"` or `"backbone"`.
    """
    (folder / MARKER).write_text(kind + "\n", encoding="utf-8")


def is_marked(folder: Path) -> bool:
    """Return whether detris_peft wrote this folder."""
    return (folder / MARKER).is_file()


def check_output_file(
    file: str | os.PathLike, overwrite: bool, inputs: tuple[str | os.PathLike, ...] = (), option: str = "--output"
) -> None:
    """Raise a ValueError if a command must not write this file.

    Args:
        file: the file to write.
        overwrite: whether an existing file may be replaced.
        inputs: files that the command reads; they are never replaced.
        option: the option that names the file, for the message.
    """
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"{option} {file}: expected a file to write, got a folder; add a file name.")
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"{option} {file}: expected a path in a folder, but {path.parent} is a file; change it.")
    for name in inputs:
        if path.exists() and Path(name).exists() and path.samefile(name):
            raise ValueError(f"{option} {file}: expected another file than the input; choose another name.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"{option} {file}: expected a new file, got an existing one; add --overwrite, or choose another name."
        )


def check_output_folder(
    folder: str | os.PathLike, overwrite: bool, option: str = "--output", otherwise: str = "choose another folder"
) -> None:
    """Raise a ValueError if a command must not replace this folder.

    An empty or missing folder may always be written. A folder that detris_peft wrote may be replaced with
    `overwrite`; any other folder never.

    Args:
        folder: the folder to write.
        overwrite: whether an existing folder may be replaced.
        option: the option that names the folder, for the message.
        otherwise: alternatives to --overwrite, for the message.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} {folder}: expected a folder to write, got a file; choose another name.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not is_marked(path):
        raise ValueError(
            f"{option} {folder}: expected an empty folder or one that detris wrote, got a folder with other files; "
            "choose another folder."
        )
    if not overwrite:
        raise ValueError(
            f"{option} {folder}: expected a new folder, got an existing one; add --overwrite, or {otherwise}."
        )
