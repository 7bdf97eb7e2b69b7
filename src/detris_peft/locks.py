"""Advisory locks on folders and files. The system releases them when the process ends, however it ends."""

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
    with _locked(os.open(folder, os.O_RDONLY), folder, _TIMEOUT, shared):
        yield


@contextmanager
def lock_file(file: Path, timeout: float) -> Iterator[None]:
    """Hold an advisory lock on a file, which is created if missing. It has no effect on file systems without locks.

    Args:
        file: a file without content.
        timeout: seconds to wait for another process.

    Raises:
        TimeoutError: another process holds the lock for too long.
        OSError: the file cannot be written.
    """
    # Writable, because NFS locks no other files exclusively.
    with _locked(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), file, timeout, shared=False):
        yield


@contextmanager
def _locked(descriptor: int, path: Path, timeout: float, shared: bool) -> Iterator[None]:
    """Hold the lock of an open file or folder, and close it."""
    started = time.monotonic()
    try:
        while try_lock(descriptor, shared=shared) is False:
            if time.monotonic() - started > timeout:
                raise TimeoutError(
                    f"{path}: another process has been using it for {timeout:.0f} s; wait for it, or end it."
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
