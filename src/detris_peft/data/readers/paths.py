"""Paths of the files that annotations name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import notice


def named_file(folder: Path, name: str) -> Path:
    """Return the path of a file below `folder`; backslashes separate folders if no file has exactly this name."""
    path = folder / name
    if "\\" in name and not path.exists():
        return folder / name.replace("\\", "/")
    return path


def note_outside(file: Path, root: Path, where: str) -> None:
    """Notice a file that is not below `root`, once links are resolved: a dataset could name any file of the machine.

    Args:
        file: an image or a mask.
        root: the folder of the dataset or of its images.
        where: prefix of the message.
    """
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root)):
        notice(
            "file_outside",
            f"{where}: {file} is not in the folder {root}; move it there, or pass --allow_outside to `detris data "
            "convert`",
        )


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
