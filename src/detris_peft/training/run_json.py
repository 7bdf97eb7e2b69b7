"""`run.json`: what a run was started with."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..atomic import write_json
from ..safe_loading import read_json

RUN_FILE = "run.json"
_PACKAGES = (
    "detris-peft",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "opencv-python-headless",
)
_MAX_GIT_FILE_BYTES = 1 << 24  # packed-refs of a repository with many branches has a few MB


def write_run_json(folder: Path, options: Mapping[str, Any], num_processes: int, resumed: bool) -> None:
    """Write `run.json`: the resolved options, command, package versions, seed, git commit and machine.

    Args:
        folder: the run's output_dir.
        options: the resolved value of every option.
        num_processes: number of ranks.
        resumed: whether the run is resumed; if so, what earlier starts wrote is kept under `earlier`.
    """
    file = folder / RUN_FILE
    earlier = read_json(file) if resumed and file.is_file() else None
    content = {
        "options": dict(options),
        "seed": options.get("seed"),
        "command": sys.argv,
        "num_processes": num_processes,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": {"commit": commit} if (commit := git_commit(Path.cwd())) else None,
        "machine": {
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        },
        "earlier": [*earlier.pop("earlier", []), earlier] if isinstance(earlier, dict) else [],
    }
    write_json(file, content)


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in the git repository that contains `folder`, or None outside a repository.

    The repository's files are read directly. The program git would run commands that a downloaded repository can
    configure, such as `core.fsmonitor`.
    """
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if git.is_file():  # a worktree or a submodule: "gitdir: PATH"
            git = parent / _read(git).removeprefix("gitdir:").strip()
        if git.is_dir():
            return _commit_of_head(git)
    return None


def _commit_of_head(git: Path) -> str | None:
    head = _read(git / "HEAD")
    if not head.startswith("ref:"):
        return _as_commit(head)
    name = head.removeprefix("ref:").strip()
    if not name.startswith("refs/") or ".." in name:  # a path of the repository, not of the machine
        return None
    shared = git / _read(git / "commondir") if (git / "commondir").is_file() else git  # branches of a worktree
    for folder in (git, shared):
        if commit := _as_commit(_read(folder / name)):
            return commit
    packed = (line.split(" ", 1) for line in _read(shared / "packed-refs").splitlines() if " " in line)
    return next((_as_commit(commit) for commit, ref in packed if ref.strip() == name), None)


def _read(file: Path) -> str:
    """Return the text of a small regular file, or "" if it cannot be read."""
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            return stream.read(_MAX_GIT_FILE_BYTES).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""


def _as_commit(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # detris-peft imported from its source folder
            continue
    return installed
