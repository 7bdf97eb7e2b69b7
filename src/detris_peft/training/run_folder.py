"""A run's folder: taken before the work, and what it holds to read: how it was started, on what, how it went."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def take_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make sure, before any work, that the folder can be written and holds nothing that would be lost.

    Args:
        folder: the run's output_dir.
        resume: the run goes on from what is there.
        overwrite: what an earlier run left is removed.

    Raises:
        ValueError: what stands against it.
    """
    for place in (folder, folder / "last", folder / "best"):
        if place.is_file():
            raise ValueError(f"{place} is a file where a folder is to be written: choose another output_dir.")
    left = [name for name in ("checkpoints", "best", "last") if any(folder.glob(f"{name}/*"))]
    if not resume and left:
        if not overwrite:
            raise ValueError(
                f"{folder} holds {', '.join(left)} of an earlier run: go on with --resume latest, begin anew with "
                "--overwrite_output_dir, or choose another output_dir."
            )
        for name in left:
            remove(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "probe", "")
        (folder / "probe").unlink()
        for name in ("best", "last"):
            recover(folder / name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another output_dir.") from None


def write_start(folder: Path, options: Mapping[str, Any], processes: int, resumed: bool) -> None:
    """`run.json`: the resolved options, versions, seed, git state and machine.

    Args:
        folder: the run's output_dir.
        options: every option with the value that it resolved to.
        processes: of the training.
        resumed: keep what stands there of earlier starts, under `earlier`.
    """
    file = folder / "run.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if resumed and file.is_file() else None
    content = {
        "options": dict(options),
        "seed": options.get("seed"),
        "command": sys.argv,
        "processes": processes,
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


def write_history(folder: Path, options: Mapping[str, Any], history: Sequence[Mapping[str, float]], best: Any) -> None:
    """`metrics.jsonl`, a line an evaluation, and `metrics.json`, the same with the best one and the options."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))
    write_json(folder / "metrics.json", {"arguments": dict(options), "best": best, "history": list(history)})


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, of the folder that the run was started in; None outside of git."""

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
        except importlib.metadata.PackageNotFoundError:  # imported from its source folder
            continue
    return installed
