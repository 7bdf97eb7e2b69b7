"""Checks of the output folder of a dataset, names of the files in it, and writing it atomically."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...atomic import atomic_write_dir, recover
from ...outputs import MARKER, check_output_folder
from ...safe_loading import parse_json
from ..readers.folder import METADATA


def check_split_names(splits: Iterable[str]) -> None:
    """Raise a ValueError if a split cannot be part of a file name."""
    for split in splits:
        if not re.fullmatch(r"\w+(\.\w+)*", split):
            raise ValueError(f"expected a split name of letters, digits, '_' and '.', got '{split}'; rename the split")


def check_output(
    output: str | os.PathLike[str], overwrite: bool, source: Path | None, is_ours: Callable[[str], bool]
) -> None:
    """Raise a ValueError if the folder must not be written or replaced.

    Args:
        output: the folder.
        overwrite: whether an earlier output of the same command may be replaced.
        source: the file or folder of the dataset, if it is local.
        is_ours: returns whether the command wrote the file of this name, relative to the folder.
    """
    option, folder = "--output", Path(os.path.realpath(output))
    recover(folder)  # from an interrupted command
    if Path.cwd().is_relative_to(folder):
        raise ValueError(f"{option} {output}: expected a new folder, got the working directory; add a folder name")
    if source is not None and Path(os.path.realpath(source)).is_relative_to(folder):
        raise ValueError(f"{option} {output}: expected another folder than the dataset's own; choose another folder")
    check_output_folder(output, overwrite, option, kind="dataset")
    # Files that were added later would be lost.
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()]
    foreign = [name for name in names if not is_ours(name)]
    if foreign:
        raise ValueError(
            f"{option} {output}: expected only files that this command wrote, got {min(foreign)}; move it, or choose "
            "another folder"
        )


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Write a folder as `atomic_write_dir` does; write errors say what to do, errors of the source are unchanged."""
    staging = None
    try:
        with atomic_write_dir(folder) as staging:
            yield staging
    except OSError as error:
        if staging is None:
            raise type(error)(
                f"{folder}: cannot be written ({error.strerror}: {error.filename}); choose another folder"
            ) from None
        is_from_source = error.filename and not str(error.filename).startswith((str(staging), str(folder)))
        if error.errno is None or is_from_source:
            raise
        raise OSError(
            f"{folder}: cannot be written ({error.strerror or error}); free disk space or choose another folder; "
            "no partial output was kept"
        ) from None
    finally:
        recover(folder)  # the older folder, if only its replacement failed


def unique_name(name: str, taken: set[str]) -> str:
    """Return the name of a copied image: below the image folder, and used only once."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        name = Path(name).name
    path, number = Path(name), 1
    while name in taken:
        number += 1
        name = path.with_stem(f"{path.stem}-{number}").as_posix()
    taken.add(name)
    return name


def written_files(folder: Path) -> set[str]:
    """Return the names of the files in a folder with a metadata.jsonl per split that an earlier command wrote."""
    names = {MARKER, "README.md"}
    for file in folder.glob(f"*/{METADATA}"):
        names.add(f"{file.parent.name}/{METADATA}")
        try:
            lines = [parse_json(line, str(file)) for line in file.read_text(encoding="utf-8").split("\n") if line]
            files = (line.get(key) for line in lines for key in ("file_name", "mask_file_name"))
            names |= {f"{file.parent.name}/{name}" for name in files if name is not None}
        except (OSError, ValueError, TypeError, AttributeError):  # an edited file: its names are unknown
            continue
    return names
