"""Output directory of a run: checked and locked before training."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from accelerate import Accelerator

from ..atomic import recover, recover_all, remove, write_text
from ..outputs import MARKER, folder_kind, mark_folder
from ..safe_loading import read_json
from .arguments import TrainingArguments
from .distributed import run_on_all_ranks
from .run_json import RUN_FILE

if sys.platform != "win32":  # on Windows, nothing is locked
    import fcntl

LOCK_FILE = ".lock"
_RESULTS = ("checkpoints", "best", "last")
_WRITTEN_BEFORE_TRAINING = {"backbones", MARKER, LOCK_FILE}


@contextmanager
def claimed_output_dir(accelerator: Accelerator, arguments: TrainingArguments) -> Iterator[None]:
    """Check, lock and clean up the output_dir; it stays locked within the block.

    Raises:
        ValueError: the folder cannot be used; the message gives the reason.
    """
    folder, locks = Path(arguments.output_dir), []

    def claim() -> None:
        check_output_dir(folder, bool(arguments.resume), arguments.overwrite)
        locks.append(lock(folder))
        # A run that was started at the same time may have written results since the check.
        check_output_dir(folder, bool(arguments.resume), arguments.overwrite)
        _prepare(folder, arguments.overwrite)

    try:
        if failure := run_on_all_ranks(accelerator, claim, main_only=True):
            raise ValueError(failure)
        yield
    finally:
        for file in locks:
            file.close()


def check_output_dir(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise a ValueError if training in this folder would lose results or files of others, or if it is not writable.

    Args:
        folder: the run's output_dir; created if missing.
        resume: whether the run in the folder is resumed.
        overwrite: whether the results of an earlier run may be deleted.
    """
    for path in (folder, *(folder / name for name in _RESULTS)):
        if path.is_file():
            raise ValueError(f"{path}: expected a folder, got a file; choose another output_dir.")
    try:
        existing = [name for name in _RESULTS if any(folder.glob(f"{name}/*"))]
        if existing and not _is_run(folder):
            raise ValueError(
                f"{folder}: expected a folder without {', '.join(existing)}, or one that detris trained in, got "
                "folders of something else; choose another output_dir."
            )
        if existing and not resume and not overwrite:
            raise ValueError(
                f"{folder}: expected a folder without a run, got {', '.join(existing)} of an earlier run; resume it "
                "with --resume latest, start again with --overwrite, or choose another output_dir."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".probe", "")
        (folder / ".probe").unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: expected a writable folder, got an error ({error.strerror}); choose another output_dir."
        ) from None


def lock(folder: Path) -> IO[str]:
    """Lock an output_dir for this process, and return the file to close to unlock it.

    The operating system releases the lock if the process dies. On a file system without locks, nothing is locked.

    Raises:
        ValueError: another process trains in the folder; the message names its machine and pid.
    """
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")
    if sys.platform == "win32":
        return file
    try:
        # A lock of the process (lockf), not of the open file (flock): DataLoader workers inherit open files, and would
        # keep the folder locked for seconds after their parent was killed. It also works on NFS. Closing any open file
        # on this path would unlock it, so nothing else in this process opens it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = " ".join(file.read(200).split()) or "another process"
        file.close()
        raise ValueError(
            f"{folder}: expected a folder in which no other run trains, got one that is locked by {owner}; "
            "wait for it or stop it, or choose another output_dir."
        ) from None
    except OSError:
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _prepare(folder: Path, overwrite: bool) -> None:
    """Mark the folder, remove temporary files of dead runs, and with `overwrite` delete earlier results."""
    if {path.name for path in folder.iterdir()} <= _WRITTEN_BEFORE_TRAINING:
        mark_folder(folder, "run")
    for name in ("best", "last"):
        recover(folder / name)
    recover_all(folder / "checkpoints", "step-*")
    for stale in folder.glob("checkpoints/.step-*"):
        remove(stale)
    if overwrite:
        for path in (folder / name for name in _RESULTS):
            if path.is_symlink():  # what it points to may not be ours
                path.unlink()
            else:
                remove(path)


def _is_run(folder: Path) -> bool:
    """Return whether a run of detris, of any version, was started in this folder."""
    if (folder / MARKER).is_file() and folder_kind(folder) == "run":
        return True
    try:
        content = read_json(folder / RUN_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"options", "versions"} <= set(content)
