"""Advisory locks on folders. The system releases them when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
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
    descriptor, started = os.open(folder, os.O_RDONLY), time.monotonic()
    try:
        while try_lock(descriptor, SHARED if shared else EXCLUSIVE) is False:
            if time.monotonic() - started > _TIMEOUT:
                raise TimeoutError(
                    f"{folder}: another process has been using this folder for {_TIMEOUT} s; wait for it, or end it."
                )
            time.sleep(0.02)
        yield
    finally:
        unlock(descriptor)


def try_lock(descriptor: int, kind: int) -> bool | None:
    """Try to lock an open file; return whether it was locked, None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock(descriptor: int) -> None:
    # Explicitly: a forked process may have a copy of the descriptor, and closing keeps the lock until all are closed.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
