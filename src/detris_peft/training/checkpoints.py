"""Checkpoints of a run: the full training state, written atomically. The newest ones are kept.

output_dir/checkpoints/step-00000120/
    trainable.safetensors     adapters, head and their running statistics (FSDP, DeepSpeed: their own files)
    ema.safetensors           moving average of the weights, with ema_decay
    optimizer.bin, random_states_<rank>.pkl, scaler.pt      written by accelerate
    progress.json             position and history, see `Progress`
    fingerprint.json          what the weights depend on, see `run_fingerprint`
    manifest.json             sizes and SHA-256 of all files
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic import (
    commit,
    recover_all,
    remove,
    remove_atomically,
    staging_path,
    start_staging,
    write_json,
)
from ..errors import one_line
from ..manifest import manifest_problem, write_manifest
from ..precision import with_precision
from ..safe_loading import read_json
from .arguments import TrainingArguments
from .distributed import run_on_all_ranks
from .ema import ExponentialMovingAverage
from .progress import Progress

WEIGHTS_FILE, EMA_FILE = "trainable.safetensors", "ema.safetensors"
PROGRESS_FILE, FINGERPRINT_FILE = "progress.json", "fingerprint.json"
# What earlier versions did, whose fingerprints lack these options. Other new options had the effect of their default.
_EARLIER_VALUES = {
    **{option.name: option.metadata["initial"] for option in fields(TrainingArguments)},
    "drop_last": False,
    "model.train_backbones": False,
    "model.loss_weights.bce": 1.0,
    "model.vision_adapter.learn_scale": False,
    "model.text_adapter.learn_scale": False,
}


class Checkpoints:
    """Saves and loads the full state of a run through accelerate.

    Args:
        folder: the run's `output_dir`.
        accelerator: holds the prepared model and optimizer.
        fingerprint: see `run_fingerprint`; a checkpoint with a different one is refused.
        limit: number of checkpoints to keep.
        ema: saved and loaded with the weights.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        fingerprint: Mapping[str, Any],
        limit: int,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        self.folder, self.accelerator, self.limit, self.ema = folder / "checkpoints", accelerator, limit, ema
        self.fingerprint = json.loads(json.dumps(fingerprint))  # comparable with one read from a file
        # With FSDP and DeepSpeed, accelerate saves the shards and passes no weights to the hooks.
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def all(self) -> list[Path]:
        """Return the folders of the existing checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint atomically, and remove the oldest ones beyond `limit`.

        Raises:
            OSError: it could not be written; the message names the checkpoint to resume from.
        """
        target = self.folder / f"step-{progress.step:08d}"
        self._run(target, lambda: self._start(target), main_only=True)
        self._run(target, lambda: self.accelerator.save_state(str(staging_path(target))))
        self._run(target, lambda: self._commit(target, progress), main_only=True)
        return target

    def _start(self, target: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".step-*"):  # left by a process that was killed
            remove(stale)
        start_staging(target)

    def _commit(self, target: Path, progress: Progress) -> None:
        write_json(staging_path(target) / PROGRESS_FILE, asdict(progress))
        write_json(staging_path(target) / FINGERPRINT_FILE, self.fingerprint)
        write_manifest(staging_path(target))
        commit(target)
        for old in self.all()[: -self.limit]:
            remove_atomically(old)

    def _run(self, target: Path, action: Callable[[], Any], main_only: bool = False) -> None:
        """Run one part of `save` on all ranks, and raise its error on all of them."""
        failure = run_on_all_ranks(self.accelerator, action, main_only)
        if failure:
            if self.accelerator.is_main_process:
                remove(staging_path(target))
            existing = self.all()
            advice = (
                f"{existing[-1]} is intact, resume from it with --resume latest"
                if existing
                else "there is no earlier checkpoint"
            )
            raise OSError(f"{target}: the checkpoint could not be written ({failure}); fix the error; {advice}.")

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if weights and self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(models[0])
            omitted = _omitted_names(model)
            state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in omitted}
            save_file(state, Path(folder) / WEIGHTS_FILE)
            if self.ema is not None:
                self.ema.save(Path(folder) / EMA_FILE)
        weights.clear()  # otherwise accelerate saves the frozen weights too

    # -- loading ------------------------------------------------------------------------------------------------------

    def load(self, resume: str) -> Progress | None:
        """Restore the state of a checkpoint.

        Args:
            resume: a checkpoint's folder, or "latest" for the newest intact one.

        Returns:
            The progress of the run; None if "latest" finds no checkpoint.

        Raises:
            ValueError: the checkpoint is damaged, is missing, or has a different fingerprint; the message names the
                fields that differ.
        """
        chosen: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                chosen = [self._choose(resume)]
            except (OSError, ValueError) as error:  # raised below, on all ranks
                chosen = [(None, one_line(error))]
        broadcast_object_list(chosen)
        folder, problem = chosen[0] or (None, None)
        if problem:
            raise ValueError(problem)
        if folder is None:
            self.accelerator.print(f"There is no checkpoint in {self.folder} yet; starting from scratch.")
            return None
        self.accelerator.load_state(str(folder))
        self._rename_newer(folder)
        progress = Progress.read(folder / PROGRESS_FILE)
        self.accelerator.print(f"Resuming from {folder} (epoch {progress.epoch}, step {progress.step}).")
        return progress

    def _choose(self, resume: str) -> tuple[Path | None, str | None]:
        """Return the checkpoint to load, or the reason why none can be loaded."""
        latest = resume == "latest"
        recover_all(self.folder, "step-*")
        candidates = self.all()[::-1] if latest else [Path(resume)]
        damaged = []
        for folder in candidates:
            if not latest:
                check_resume_folder(folder)
            problem = manifest_problem(folder)
            if problem is None:
                refusal = self._refusal(folder)
                return (None, refusal) if refusal else (folder, None)
            damaged.append(f"{folder}: {problem}")
            if latest:
                self.accelerator.print(f"{damaged[-1]}; falling back to the checkpoint before it.")
        if not damaged:
            return None, None
        return (
            None,
            f"No intact checkpoint found: {'; '.join(damaged)}; pass another one, or start again with --overwrite.",
        )

    def _refusal(self, folder: Path) -> str | None:
        """Return why an intact checkpoint does not belong to this run, or None if it does."""
        if not (folder / FINGERPRINT_FILE).exists():  # not in the manifest, so it was never written
            return (
                f"{folder}: expected {FINGERPRINT_FILE}, got none: a version of detris_peft before 0.1.0 wrote this "
                "checkpoint; finish the run with that version, or start again with --overwrite."
            )
        content = read_json(folder / FINGERPRINT_FILE)
        if not isinstance(content, dict):
            return (
                f"{folder / FINGERPRINT_FILE}: expected an object of options, got {type(content).__name__}; resume "
                "from another checkpoint."
            )
        current = _flat(self.fingerprint)
        earlier = {name: value for name, value in _EARLIER_VALUES.items() if name in current}
        saved = {**earlier, **with_precision(_flat(content))}
        names = [name for name in {**current, **saved} if current.get(name) != saved.get(name)]
        if not names:
            return None
        differences = [f"{name}: expected {current.get(name)}, got {saved.get(name)}" for name in names[:5]]
        differences += [f"and {len(names) - 5} more"] if len(names) > 5 else []
        if names == ["precision"]:
            return (
                f"{folder}: expected precision {saved['precision']}, as in the interrupted run, got "
                f"{current['precision']} (auto depends on the machine); pass --precision {saved['precision']}."
            )
        return (
            f"{folder} belongs to a different run ({'; '.join(differences)}); set the options as it has them, or "
            "start a new run in another output_dir."
        )

    def _rename_newer(self, folder: Path) -> None:
        """Rename the checkpoints newer than the resumed one, so that `latest` does not find them."""
        newer = [
            other
            for other in self.all()
            if other.name > folder.name and other.parent.resolve() == folder.parent.resolve()
        ]
        if self.accelerator.is_main_process:
            for other in newer:
                other.rename(other.with_name(f"abandoned-{other.name}"))
        if newer:
            self.accelerator.print(
                f"{len(newer)} newer checkpoints were renamed to abandoned-step-...; they can be deleted."
            )
        self.accelerator.wait_for_everyone()

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        if models:
            model = self.accelerator.unwrap_model(models[0])
            model.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE), strict=False)
            if self.ema is not None:
                self.ema.load(Path(folder) / EMA_FILE)
        models.clear()  # otherwise accelerate loads weights too


def check_resume_folder(folder: Path) -> None:
    """Raise a ValueError if a folder is not a checkpoint to resume from. Whether it is intact is not checked."""
    if not folder.is_dir():
        raise ValueError(
            f"resume: expected latest or a checkpoint folder, got {folder}, which is not a folder; correct the path."
        )
    if not any((folder / name).exists() for name in (PROGRESS_FILE, FINGERPRINT_FILE)):
        raise ValueError(
            f"resume: expected latest or a checkpoint folder, got {folder}, which has no {PROGRESS_FILE}; pass "
            "latest, or a folder checkpoints/step-... of a run."
        )


def _omitted_names(model: nn.Module) -> set[str]:
    """Return the names of frozen weights, and of further uses of a shared weight."""
    first = {name for name, p in model.named_parameters() if p.requires_grad}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - first


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} → {"a.b": 1}."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return leaves
