"""Advisory locks on folders. The system releases them when the process ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":  # on Windows, nothing is locked
    import fcntl

_TIMEOUT = 60  # seconds


@contextmanager
def lock_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock on a folder. It has no effect on file systems without locks.

    Args:
        folder: an existing folder.
        shared: allow other shared locks: for reading.

    Raises:
        TimeoutError: another process holds the lock for too long.
    """
    if sys.platform == "win32":  # cannot open folders
        yield
        return
    descriptor, started = os.open(folder, os.O_RDONLY), time.monotonic()
    try:
        while try_lock(descriptor, shared=shared) is False:
            if time.monotonic() - started > _TIMEOUT:
                raise TimeoutError(
                    f"{folder}: another process has been using this folder for {_TIMEOUT} s; wait for it, or end it."
                )
            time.sleep(0.02)
        yield
    finally:
        unlock(descriptor)


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Try to lock an open file; return whether it was locked, None if the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock(descriptor: int) -> None:
    # Explicitly: a forked process may have a copy of the descriptor, and closing keeps the lock until all are closed.
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
