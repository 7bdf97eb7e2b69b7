"""Atomic, crash-safe writes: a reader sees the old content or the complete new one, never a part of it.

This is the only module that writes through temporary paths:

- `write_text`, `write_json`, `atomic_write_file`: one file;
- `atomic_write_dir`: a folder that replaces an older one;
- `atomic_update_dir`: files that are added to a folder, which may hold others.

A process that replaces or updates a folder can be killed between two renames. `recover` then completes or undoes its
work; call it before reading or writing such a folder.

Every temporary folder is unique and locked by its process. The system releases the lock when the process ends, however
it ends, so a temporary folder without a lock is removed by the next process that writes or recovers the same path.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .locks import lock_folder, try_lock, unlock

MANIFEST = "manifest.json"
_UPDATE = ".detris_update"  # in a folder: a committed update, whose files are being moved to their places
_REMOVED = "removed.json"  # in an update: the files that it removes
_ABANDONED_AFTER = 24 * 3600  # seconds, on file systems without locks

_held: dict[Path, int] = {}  # file descriptors that hold the locks of `start_staging`


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(file, json.dumps(content, indent=2) + "\n")


@contextmanager
def atomic_write_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path of the same name that replaces `file` on success and is removed on error."""
    with _staging(file) as staging:
        yield staging / file.name
        _sync(staging / file.name)
        (staging / file.name).replace(file)


@contextmanager
def atomic_write_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` on success and is removed on error."""
    if _cannot_be_renamed(folder):
        removed = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
        with atomic_update_dir(folder, removed) as staging:
            yield staging
            sync_tree(staging)
        return
    with _parents(folder), _staging(folder) as staging:
        yield staging
        commit(folder, staging)


@contextmanager
def atomic_update_dir(folder: Path, removed: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder whose files are added to `folder` on success, all at once.

    A new `folder` appears complete, by one rename. In an existing one, the rename of the temporary folder to
    `.detris_update` commits; the files then move to their places. If the process dies meanwhile, `recover` completes
    the update. Other files in `folder` stay. The files are not synced to disk, which takes long for many files; call
    `sync_tree` for those that must survive a power loss.

    Args:
        folder: the folder, created if missing.
        removed: relative names of files to remove from it in the same step.
    """
    folder = Path(os.path.realpath(folder))
    # Next to a new or empty folder, so that a process that is killed leaves no folder, or an empty one.
    inside = _cannot_be_renamed(folder) or (folder.is_dir() and any(folder.iterdir()))
    with _parents(folder), _staging(folder / _UPDATE if inside else folder) as staging:
        files = staging / "files"
        files.mkdir()
        yield files
        added = {path.relative_to(files).as_posix() for path in files.rglob("*")}
        (staging / _REMOVED).write_text(json.dumps(sorted(set(removed) - added)), encoding="utf-8")
        if inside or not _rename_to_new(files, folder):
            with lock_folder(folder):
                _complete_update(folder)
                _read_update(folder, staging)  # raises before anything changes
                staging.rename(folder / _UPDATE)
                _sync(folder)
                _complete_update(folder)


def start_staging(folder: Path) -> Path:
    """Create and return an empty staging folder next to `folder`, to be written and then committed.

    Its path is known to all processes of a distributed run, see `staging_path`, so the caller must exclude other
    writers of `folder`; `atomic_write_dir` need not.
    """
    staging = staging_path(folder)
    remove(staging)
    staging.mkdir(parents=True)
    _held[staging] = os.open(staging, os.O_RDONLY)
    try_lock(_held[staging])
    return staging


def commit(folder: Path, staging: Path | None = None) -> None:
    """Replace `folder` with its staging folder, after syncing it to disk.

    An older `folder` is renamed first and removed last. If the process dies in between, `recover` restores it.

    Args:
        folder: the folder to replace. If it is a link, the folder that it points to is replaced.
        staging: default: that of `start_staging`.
    """
    folder = Path(os.path.realpath(folder))
    staging = staging_path(folder) if staging is None else staging
    sync_tree(staging)
    if not _rename_to_new(staging, folder):
        with lock_folder(folder):
            remove(_previous(folder))
            folder.rename(_previous(folder))
            staging.rename(folder)
            _sync(folder.parent)
            remove(_previous(folder))
    _release(staging)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below a folder to disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def recover(folder: Path) -> bool:
    """Complete or undo what a process that died was writing to `folder`, and remove its temporary files.

    Does nothing, and needs no permission to write, if no such process left anything.

    Returns:
        Whether the content of `folder` changed.

    Raises:
        OSError: the folder needs recovery but cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    changed = folder.name != "" and _remove_unlocked(_previous(folder), restore=folder)  # the root has no name
    if (folder / _UPDATE).is_dir():
        try:
            with lock_folder(folder):
                changed = _complete_update(folder) or changed
        except PermissionError as error:
            fix = "a process that wrote to it was interrupted; make it writable once, or copy it"
            raise PermissionError(f"{folder}: {error.strerror}: {fix}.") from error
    _remove_abandoned(folder)
    _remove_abandoned(folder / _UPDATE)
    return changed


def recover_all(parent: Path, pattern: str) -> None:
    """Call `recover` for every folder in `parent` that matches the pattern and was being replaced."""
    for previous in parent.glob(f".{pattern}.previous"):
        recover(parent / previous.name.removeprefix(".").removesuffix(".previous"))


def remove_atomically(folder: Path) -> None:
    """Remove a folder so that no reader sees it half removed: rename, then delete."""
    with _staging(folder) as staging:
        folder.rename(staging / folder.name)


def remove(folder: Path) -> None:
    """Remove a folder if it exists."""
    _release(folder)
    shutil.rmtree(folder, ignore_errors=True)


def staging_path(path: Path) -> Path:
    """Return the temporary sibling under which `start_staging` creates a folder."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.part")


# -- internal ---------------------------------------------------------------------------------------------------------


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create the parents of a folder, and remove them again on error."""
    created = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in created:
            with suppress(OSError):  # it may contain other files by now
                parent.rmdir()
        raise


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder next to `path`, and remove it in the end if it still exists."""
    path = Path(os.path.realpath(path))
    _remove_abandoned(path)
    while True:
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY)
        if try_lock(descriptor) is not False and staging.exists():
            break
        os.close(descriptor)  # another process took it for abandoned before it was locked
    try:
        yield staging
    finally:
        try:
            remove(staging)
        finally:
            unlock(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders next to `path` whose process died."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?:[0-9a-f]{{8}}\.)?part")
    try:
        stale = [path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name)]
    except OSError:  # no such folder, or no permission to list it
        return
    for temporary in stale:
        _remove_unlocked(temporary, restore=None)


def _remove_unlocked(temporary: Path, restore: Path | None) -> bool:
    """Remove a temporary folder if its process died, or rename it to `restore` if nothing exists there.

    Returns:
        Whether it was renamed.
    """
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError:  # removed meanwhile, or not ours
        return False
    try:
        locked = try_lock(descriptor)
        if restore is not None and locked is not False and not restore.exists():
            temporary.rename(restore)
            return True
        age = time.time() - os.fstat(descriptor).st_mtime
        if locked or (locked is None and age > _ABANDONED_AFTER):
            remove(temporary)
    finally:
        unlock(descriptor)
    return False


def _rename_to_new(source: Path, folder: Path) -> bool:
    """Rename a folder unless `folder` exists with content; return whether it was renamed."""
    try:
        source.rename(folder)
    except OSError:
        if folder.is_dir():
            return False
        raise
    _sync(folder.parent)
    return True


def _complete_update(folder: Path) -> bool:
    """Move the files of a committed update to their places. Can be repeated after a kill at any point."""
    update = folder / _UPDATE
    if not update.is_dir():
        return False
    added, removed = _read_update(folder, update)
    for name in sorted(added, key=lambda name: (name.name == MANIFEST, name)):  # the manifest last
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (update / "files" / name).replace(folder / name)
    for parent in {(folder / name).parent for name in added}:
        _sync(parent)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # other files in it stay
            if (folder / name).parent != folder:
                (folder / name).parent.rmdir()
    remove_atomically(update)
    return True


def _read_update(folder: Path, update: Path) -> tuple[list[Path], list[Path]]:
    """Return the names of the files that an update adds to a folder, and of those that it removes.

    Raises:
        ValueError: the update is damaged, or would change files elsewhere: the folder may be a downloaded one.
    """
    try:
        removed = [Path(name) for name in json.loads((update / _REMOVED).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problem = f"{update / _REMOVED}: expected a list of file names, got an error ({error})"
        raise ValueError(f"{problem}; remove {update}.") from None
    files = update / "files"
    added = [path.relative_to(files) for path in files.rglob("*") if path.is_file()]
    paths = [folder / name for name in (*added, *removed)]
    outside = [p for p in paths if os.pardir in p.parts or not p.parent.resolve().is_relative_to(folder)]
    outside += [path for path in (update, files) if path.is_symlink()]
    if outside:
        raise ValueError(
            f"{outside[0]}: expected a path in {folder}, got one that leads out of it; remove the link, or "
            f"{folder / _UPDATE}."
        )
    return added, removed


def _cannot_be_renamed(folder: Path) -> bool:
    """Return whether a folder exists that is a mount point, or that is in a folder which cannot be written."""
    folder = Path(os.path.realpath(folder))
    return folder.is_dir() and (folder.is_mount() or not os.access(folder.parent, os.W_OK | os.X_OK))


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _release(folder: Path) -> None:
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        unlock(descriptor)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)
