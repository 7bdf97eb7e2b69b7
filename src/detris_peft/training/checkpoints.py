"""A run's checkpoints: everything that going on needs, written aside and named last, the newest few kept.

output_dir/checkpoints/step-00000120/
    trainable.safetensors     adapters, head and their running statistics (FSDP, DeepSpeed: their own files)
    ema.safetensors           the average, if there is one
    optimizer.bin, random_states_<process>.pkl, scaler.pt      accelerate's
    progress.json             position, history, best
    course.json               what the run is determined by
    manifest.json             sizes and SHA-256 of all these
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic import (
    commit,
    manifest_problem,
    recover_all,
    remove,
    remove_atomically,
    staging_path,
    start_staging,
    write_json,
    write_manifest,
)
from .distributed import together
from .ema import ExponentialMovingAverage

WEIGHTS_FILE, EMA_FILE = "trainable.safetensors", "ema.safetensors"
PROGRESS_FILE, COURSE_FILE = "progress.json", "course.json"


@dataclass
class Progress:
    """Where a run stands. Whatever the next step depends on is in here, in the weights or in accelerate's files."""

    epoch: int = 1  # the running one, from 1
    batch: int = 0  # batches of it that are done
    step: int = 0  # steps of the optimizer, over all epochs
    loss_sum: float = 0.0  # of the batches since the last evaluation, and their number
    loss_count: int = 0
    skipped_batches: int = 0  # for a loss that was not finite
    history: list[dict[str, float]] = field(default_factory=list)  # a record an evaluation
    bad_rows: dict[str, str] = field(default_factory=dict)  # message → kind

    def best(self, metric: str) -> dict[str, float]:
        return max(self.history, key=lambda record: record[metric])

    def evaluations_since_best(self, metric: str) -> int:
        return len(self.history) - 1 - self.history.index(self.best(metric))


class Checkpoints:
    """Saves and loads a run's whole state through accelerate.

    Args:
        folder: the run's `output_dir`.
        accelerator: with the prepared model and optimizer.
        course: what the run is determined by, field by field; a checkpoint of another course is refused.
        limit: how many to keep.
        ema: saved and loaded along.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        course: Mapping[str, Any],
        limit: int,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        self.folder, self.accelerator, self.limit, self.ema = folder / "checkpoints", accelerator, limit, ema
        self.course = json.loads(json.dumps(course))  # as it will be read again
        # With FSDP and DeepSpeed the engine saves its shards, and the hooks find no weights to save.
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def all(self) -> list[Path]:
        """The checkpoints that are there, the oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint, whole or not at all, and remove those beyond `limit`.

        Raises:
            OSError: it could not be written; the message says what there is to go on from.
        """
        target = self.folder / f"step-{progress.step:08d}"
        self._together(target, lambda: self._begin(target), main_only=True)
        self._together(target, lambda: self.accelerator.save_state(str(staging_path(target))))
        self._together(target, lambda: self._commit(target, progress), main_only=True)
        return target

    def load(self, resume: str) -> Progress | None:
        """Bring the run back to a checkpoint.

        Args:
            resume: a checkpoint's folder, or "latest" for the newest that is whole.

        Returns:
            Where the run stands; None if "latest" finds no checkpoint at all.

        Raises:
            ValueError: the checkpoint is damaged, or is of another course; the message names the fields.
            FileNotFoundError: there is no such folder.
        """
        chosen = [self._choose(resume)] if self.accelerator.is_main_process else [None]
        broadcast_object_list(chosen)
        folder, problem = chosen[0] or (None, None)
        if problem:
            raise ValueError(problem)
        if folder is None:
            self.accelerator.print(f"There is no checkpoint in {self.folder} yet: beginning anew.")
            return None
        self.accelerator.load_state(str(folder))
        self._set_newer_aside(folder)
        progress = Progress(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
        self.accelerator.print(f"Going on from {folder} (epoch {progress.epoch}, step {progress.step}).")
        return progress

    def _set_newer_aside(self, folder: Path) -> None:
        """What was saved after the checkpoint that is gone on from belongs to another course now."""
        newer = [other for other in self.all() if other.name > folder.name and other.parent == folder.parent]
        if self.accelerator.is_main_process:
            for other in newer:
                other.rename(other.with_name(f"abandoned-{other.name}"))
        if newer:
            self.accelerator.print(
                f"{len(newer)} newer checkpoints are now named abandoned-step-...; remove them at will."
            )
        self.accelerator.wait_for_everyone()

    # -- saving -------------------------------------------------------------------------------------------------------

    def _begin(self, target: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*"):  # by a process that was killed
            remove(left)
        start_staging(target)

    def _commit(self, target: Path, progress: Progress) -> None:
        write_json(staging_path(target) / PROGRESS_FILE, asdict(progress))
        write_json(staging_path(target) / COURSE_FILE, self.course)
        write_manifest(staging_path(target))
        commit(target)
        for old in self.all()[: -self.limit]:
            remove_atomically(old)

    def _together(self, target: Path, action: Callable[[], Any], main_only: bool = False) -> None:
        failure = together(self.accelerator, action, main_only)
        if failure:
            if self.accelerator.is_main_process:
                remove(staging_path(target))
            there = self.all()
            left = f"{there[-1]} is whole, --resume latest goes on from it" if there else "there is no earlier one"
            raise OSError(f"The checkpoint {target} could not be written ({failure}): mend that; {left}.")

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if weights and self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(models[0])
            frozen = _frozen(model)
            state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in frozen}
            save_file(state, Path(folder) / WEIGHTS_FILE)
            if self.ema is not None:
                self.ema.save(Path(folder) / EMA_FILE)
        weights.clear()  # of accelerate, which would save the frozen ones too

    # -- loading ------------------------------------------------------------------------------------------------------

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        if models:
            model = self.accelerator.unwrap_model(models[0])
            model.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE), strict=False)
            if self.ema is not None:
                self.ema.load(Path(folder) / EMA_FILE)
        models.clear()

    def _choose(self, resume: str) -> tuple[Path | None, str | None]:
        """The checkpoint to load, and what stands against it."""
        latest = resume == "latest"
        recover_all(self.folder, "step-*")
        candidates = self.all()[::-1] if latest else [Path(resume)]
        damaged = []
        for folder in candidates:
            if not folder.is_dir():
                return None, f"There is no checkpoint {folder}: give a folder of checkpoints/, or latest."
            problem = manifest_problem(folder)
            if problem is None:
                differences = self._differences(folder)
                if differences:
                    return None, (
                        f"{folder} is of another run: {'; '.join(differences)}. Give the same options, or begin "
                        "anew in another output_dir."
                    )
                return folder, None
            damaged.append(f"{folder}: {problem}")
            if latest:
                self.accelerator.print(f"{damaged[-1]}; falling back to the checkpoint before it.")
        return None, f"No checkpoint is whole: {'; '.join(damaged)}." if damaged else None

    def _differences(self, folder: Path) -> list[str]:
        there = _flat(json.loads((folder / COURSE_FILE).read_text(encoding="utf-8")))
        here = _flat(self.course)
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        more = [f"and {len(names) - 5} more"] if len(names) > 5 else []
        return [f"{name} is {here.get(name)} here and {there.get(name)} there" for name in names[:5]] + more


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}"""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return leaves
