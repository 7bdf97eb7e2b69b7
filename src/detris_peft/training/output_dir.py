"""Output directory of a run: validation before training, and `run.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..atomic import recover, remove, write_json, write_text

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


def claim_output_dir(folder: Path, resume: bool, overwrite: bool) -> None:
    """Check that the folder is writable and that training in it loses no results.

    Args:
        folder: the run's output_dir.
        resume: whether the run in the folder is resumed.
        overwrite: whether to delete the results of an earlier run.

    Raises:
        ValueError: the folder cannot be used; the message gives the reason.
    """
    for path in (folder, folder / "last", folder / "best"):
        if path.is_file():
            raise ValueError(f"{path}: expected a folder, got a file; choose another output_dir.")
    existing = [name for name in ("checkpoints", "best", "last") if any(folder.glob(f"{name}/*"))]
    if not resume and existing:
        if not overwrite:
            raise ValueError(
                f"{folder}: expected a folder without a run, got {', '.join(existing)} of an earlier run; continue it "
                "with --resume latest, start again with --overwrite_output_dir, or choose another output_dir."
            )
        for name in existing:
            remove(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "probe", "")
        (folder / "probe").unlink()
        for name in ("best", "last"):
            recover(folder / name)
    except OSError as error:
        raise ValueError(
            f"{folder}: expected a writable folder, got an error ({error.strerror}); choose another output_dir."
        ) from None


def write_run_json(folder: Path, options: Mapping[str, Any], num_processes: int, resumed: bool) -> None:
    """Write `run.json`: the resolved options, command, package versions, seed, git state and machine.

    Args:
        folder: the run's output_dir.
        options: the resolved value of every option.
        num_processes: number of ranks.
        resumed: whether the run is resumed; if so, what earlier starts wrote is kept under `earlier`.
    """
    file = folder / "run.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if resumed and file.is_file() else None
    content = {
        "options": dict(options),
        "seed": options.get("seed"),
        "command": sys.argv,
        "num_processes": num_processes,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_state(),
        "machine": {
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        },
        "earlier": [*earlier.pop("earlier", []), earlier] if earlier else [],
    }
    write_json(file, content)


def git_state() -> dict[str, Any] | None:
    """Return the commit and the changed files of the working directory, or None outside a git repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # detris-peft imported from its source folder
            continue
    return installed
