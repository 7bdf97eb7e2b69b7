"""Trains and scores the runs of a comparison that are not finished, one after the other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list

from ..errors import is_out_of_memory, one_line
from ..modeling.parameter_counts import ParameterCounts
from ..outputs import folder_kind, mark_folder
from ..safe_loading import read_json
from ..training import TrainingInterrupted
from ..training.distributed import run_on_all_ranks
from ..training.output_dir import lock
from ..training.run_json import RUN_FILE
from .results import RESULTS_FOLDER, RunResult, read_result, result_file, run_name
from .scores import Scores, score_checkpoint, write_predictions
from .settings import comparable, first_difference, settings_hash, without_paths

RUNS_FOLDER, LOCKS_FOLDER = "runs", ".locks"
_CONTINUE = "To continue, run the same command again."


@dataclass(frozen=True)
class Arm:
    """One arm of an experiment, ready to be trained.

    Attributes:
        name: its name.
        settings: what its results depend on, see `settings.py`.
        options: every resolved option, for the result.
        parameters: its numbers of parameters. They distinguish an arm without adapters from one with the default ones,
            whose settings are equal.
        train: trains it with a seed in an output_dir, and returns the history; resumes an interrupted run.
        eval_batch_size, num_workers, skip_bad_rows: how it is scored.
    """

    name: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    parameters: ParameterCounts
    train: Callable[[int, Path], list[dict[str, float]]]
    eval_batch_size: int
    num_workers: int
    skip_bad_rows: bool


def check_folder(folder: Path, outputs: Iterable[str]) -> None:
    """Raise a ValueError if a folder is not one for a comparison.

    A folder that contains results, such as copied ones, is accepted.

    Args:
        folder: the comparison's output_dir, which may not exist.
        outputs: names of files that a comparison writes into it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, got a file; choose another --output_dir.")
    kind = folder_kind(folder)
    existing = [name for name in outputs if (folder / name).exists()]
    has_results = any((folder / RESULTS_FOLDER).glob("*-seed*.json"))
    if kind not in (None, "comparison") or (kind is None and existing and not has_results):
        got = f"that of a {kind}" if kind else f"one with another {existing[0]}"
        raise ValueError(
            f"{folder}: expected a new folder or that of a comparison, got {got}; choose another --output_dir."
        )


def prepare_folder(folder: Path) -> None:
    """Create a comparison's folder, and mark it as such.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark_folder(folder, "comparison")
    except OSError as error:
        raise ValueError(
            f"{folder}: expected a writable folder, got an error ({error.strerror}); choose another --output_dir."
        ) from None


def check_result(folder: Path, arm: Arm, seed: int, splits: Sequence[str]) -> bool:
    """Return whether a run is finished: whether it has a result with these splits.

    Raises:
        ValueError: the result is damaged, or of other settings.
    """
    result = read_result(folder, arm.name, seed)
    if result is None:
        return False
    shared = [split for split in splits if split in result.samples]  # either may have further splits
    pairs = ((arm.settings, result.settings), (_trained(arm.parameters), _trained(result.parameters)))
    differences = (first_difference(comparable(a, shared), comparable(b, shared)) for a, b in pairs)
    if difference := next(filter(None, differences), None):
        raise ValueError(
            f"{result_file(folder, arm.name, seed)}: expected a result with the settings of the experiment, got "
            f"another one ({difference}); choose another --output_dir, or remove the file and "
            f"{RUNS_FOLDER}/{result.name} to train this run again."
        )
    return set(splits) <= set(result.samples)


@dataclass
class Runner:
    """Trains and scores runs, and writes their results.

    Args:
        folder: the comparison's folder.
        arms: the arms by name.
        rows: dataset of each split to score.
        state: the processes, which all call `run`.
        after_run: called on the main rank after each result.
    """

    folder: Path
    arms: Mapping[str, Arm]
    rows: Mapping[str, datasets.Dataset]
    state: PartialState
    after_run: Callable[[], Any]

    def run(self, runs: Sequence[tuple[str, int]]) -> None:
        """Train and score each run (arm, seed) that is not finished and that no other process works on.

        A run that fails counts as not finished. The other runs follow, unless several processes take part: after an
        error on one of them, the others may block.

        Raises:
            ValueError, MemoryError: a run failed; the message names the first one.
            TrainingInterrupted: after SIGINT or SIGTERM, once the current run is saved.
        """
        errors: list[Exception] = []
        for number, (name, seed) in enumerate(runs, start=1):
            arm, locks = self.arms[name], []
            try:
                obstacle = self._on_main(lambda arm=arm, seed=seed, locks=locks: self._claim(arm, seed, locks))
                if obstacle:
                    self.state.print(f"[{number}/{len(runs)}] {name}, seed {seed}: {obstacle}.")
                    continue
                self.state.print(f"[{number}/{len(runs)}] {name}, seed {seed}: training.")
                if error := self._run_one(arm, seed):
                    if self.state.num_processes > 1:
                        raise error
                    errors.append(error)
                    print(f"Failed: {one_line(error)}")
                    continue
            finally:
                for file in locks:
                    file.close()
            self._on_main(self.after_run)
        if len(errors) > 1:
            raise ValueError(f"{len(errors)} runs failed, the first one with this error: {one_line(errors[0])}")
        if errors:
            raise errors[0]

    def _claim(self, arm: Arm, seed: int, locks: list[IO[str]]) -> str | None:
        """Lock a run that is to be trained; return why it is not to be trained, or None."""
        splits = [*self.rows]
        if check_result(self.folder, arm, seed, splits):
            return "finished already"
        folder = self.folder / LOCKS_FOLDER / run_name(arm.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            locks.append(lock(folder))
        except ValueError:
            return "skipped, because another process is working on it"
        # The process that held the lock may just have finished it.
        return "finished already" if check_result(self.folder, arm, seed, splits) else None

    def _run_one(self, arm: Arm, seed: int) -> Exception | None:
        """Train and score a run; return the error if it failed."""
        start, folder = time.perf_counter(), self.folder / RUNS_FOLDER / run_name(arm.name, seed)
        try:
            _reset_accelerate()
            history = arm.train(seed, folder)
            _reset_accelerate()
            scores = score_checkpoint(
                folder / "best",
                self.rows,
                batch_size=arm.eval_batch_size,
                num_workers=arm.num_workers,
                skip_bad_rows=arm.skip_bad_rows,
            )
            seconds = time.perf_counter() - start
            failure = run_on_all_ranks(
                self.state, lambda: self._write(arm, seed, history, scores, folder, seconds), main_only=True
            )
            if failure:
                raise OSError(failure)
        except TrainingInterrupted as stop:
            saved = str(stop).partition(" To resume,")[0]
            raise TrainingInterrupted(f"{arm.name}, seed {seed}: {saved} {_CONTINUE}", stop.signum) from None
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            kind = MemoryError if isinstance(error, MemoryError) or is_out_of_memory(error) else ValueError
            return kind(f"{arm.name}, seed {seed}: {one_line(error)}")
        finally:
            _free_memory()
        return None

    def _write(
        self, arm: Arm, seed: int, history: list[dict[str, float]], scores: Scores, folder: Path, seconds: float
    ) -> None:
        run: Any = read_json(folder / RUN_FILE)
        result = RunResult(
            arm=arm.name,
            seed=seed,
            settings=dict(arm.settings),
            settings_sha256=settings_hash(arm.settings),
            options=without_paths({**arm.options, "seed": seed}),
            versions=run["versions"],
            device=run["machine"]["device"],
            num_processes=self.state.num_processes,
            seconds=round(seconds, 1),
            interruptions=len(run["earlier"]),
            parameters=scores.parameters,
            history=history,
            metrics=scores.metrics,
            samples=scores.samples,
        )
        write_predictions(self.folder, arm.name, seed, scores.predictions)
        result.write(self.folder)  # last: it makes the run count as finished

    def _on_main(self, action: Callable[[], Any]) -> Any:
        """Return the result of an action of the main rank on all ranks; raise its error on all ranks."""
        outcome: list[Any] = [None, None]
        if self.state.is_main_process:
            try:
                outcome = [action(), None]
            except (OSError, ValueError) as error:
                if self.state.num_processes == 1:
                    raise
                outcome = [None, one_line(error)]
        broadcast_object_list(outcome)
        if outcome[1]:
            raise ValueError(outcome[1])
        return outcome[0]


def _trained(parameters: ParameterCounts) -> dict[str, Any]:
    """Return the numbers of trained parameters. Those of frozen ones may differ between versions of transformers."""
    return {"parameters": {part: count for part, count in asdict(parameters).items() if part != "frozen"}}


def _reset_accelerate() -> None:
    """Forget the settings of an earlier run, such as its precision, but not the process group."""
    AcceleratorState._reset_state()
    GradientState._reset_state()


def _free_memory() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
