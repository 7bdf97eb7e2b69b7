"""A copy of a folder that many cases change, one after the other, and what it contains."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

_OLD = 1_000_000_000  # seconds since 1970; any change of a file gives it a later time


def _paths(path: Path) -> list[str]:
    """Return a path and, if it is a folder, all paths below it."""
    below = (os.path.join(parent, name) for parent, *names in os.walk(path) for name in [*names[0], *names[1]])
    return [str(path), *below]


def _state(path: str) -> tuple[int, ...]:
    """Return what differs after any change of a file, folder or link."""
    status = os.lstat(path)
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Workspace:
    """A copy of a folder. `restore` copies only what has changed since the copy."""

    def __init__(self, original: Path, folder: Path) -> None:
        self.original = original
        self.folder = folder
        self._states: dict[str, dict[str, tuple[int, ...]]] = {}  # for each name in the folder, by path
        self._digests: dict[str, str] = {}  # of files that have not changed, by path
        for path in _paths(original):
            os.utime(path, (_OLD, _OLD), follow_symlinks=False)
        folder.mkdir()

    def restore(self) -> None:
        """Give the folder the content of the original."""
        for path in self.folder.iterdir():
            if self._states.get(path.name) == {name: _state(name) for name in _paths(path)}:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for source in self.original.iterdir():
            path = self.folder / source.name
            if not path.exists():
                # Both keep the times of the original.
                if source.is_dir():
                    shutil.copytree(source, path, symlinks=True)
                else:
                    shutil.copy2(source, path)
                self._states[path.name] = {name: _state(name) for name in _paths(path)}

    def files(self, ignored: tuple[str, ...]) -> dict[str, str]:
        """Return a digest of every file in the folder, ignored names excluded; folders are included."""
        found = {}
        for path in _paths(self.folder)[1:]:
            name = Path(path).relative_to(self.folder).as_posix()
            if not any(name == part or name.startswith(f"{part}/") for part in ignored):
                found[name] = self._digest(path, name)
        return found

    def _digest(self, path: str, name: str) -> str:
        if not os.path.isfile(path):
            return "folder"
        if self._states.get(name.split("/")[0], {}).get(path) != _state(path):
            return _digest_of(path)
        if path not in self._digests:
            self._digests[path] = _digest_of(path)
        return self._digests[path]


def _digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
