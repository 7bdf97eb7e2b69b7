"""Paths of the files that annotations name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import notice


def named_file(folder: Path, name: str) -> Path:
    """Return the path of a file below `folder`; backslashes separate folders if no file has exactly this name."""
    path = folder / name
    if "\\" in name and not os.path.exists(path):  # False for a name that is too long
        return folder / name.replace("\\", "/")
    return path


def mask_finder(folder: Path, root: Path, where: str) -> Callable[[str], str]:
    """Return a function from the name of a mask file to its path below `folder`; arguments as for `note_outside`."""

    def find_file(name: str) -> str:
        file = named_file(folder, name)
        note_outside(file, root, where)
        return os.path.abspath(file)

    return find_file


def note_outside(file: Path, root: Path, where: str) -> None:
    """Notice a file that is not below `root`, once links are resolved: a dataset could name any file of the machine.

    Args:
        file: an image or a mask.
        root: the folder of the dataset or of its images.
        where: prefix of the message.
    """
    if not is_inside(file, root):
        real = os.path.realpath(file)
        link = "" if real == os.path.abspath(file) else f", which leads to {real},"
        notice(
            "file_outside",
            f"{where}: {file}{link} is not in the folder {root}; copy it there, or pass --allow_outside to `detris "
            "data convert` or `detris data split`",
        )


def is_inside(file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder is below `folder`, once links are resolved."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def find_image_folder(root: Path, image_folder: str) -> Path:
    """Return the folder that `--image_folder` names: below `root`, or as given.

    Raises:
        FileNotFoundError: neither exists.
    """
    below = root / image_folder
    for folder in (below, Path(image_folder)):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{below}: the image folder is missing, and so is {image_folder}; fix --image_folder, a path below {root} or "
        "from the working directory"
    )
