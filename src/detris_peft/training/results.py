"""Results of a run: the folders `last/` and `best/`, the metrics files and the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..atomic import atomic_write_dir, write_json, write_text
from ..data import EvaluationSamples
from ..modeling import DetrisForReferringSegmentation
from ..modeling.hub import push_folder
from ..modeling.model_card import TrainingResults, write_model_card
from ..processing_detris import DetrisProcessor
from ..visualization import plot_curves, plot_predictions
from .arguments import TrainingArguments
from .distributed import is_sharded, run_on_all_ranks
from .progress import Progress

PREDICTIONS_FILE, CURVES_FILE = "predictions.png", "curves.png"


@dataclass
class ResultsWriter:
    """Writes the results after each evaluation, and uploads the best ones at the end.

    Args:
        accelerator: the run's accelerator.
        model: the trained model.
        prepared: the same model as wrapped by accelerate.
        processor: saved with the model.
        validation: samples for the plot of predictions.
        arguments: the run's training arguments.
        options: every option of the run, for `metrics.json` and the model card.
        trained_on: names of the training datasets.
    """

    accelerator: Accelerator
    model: DetrisForReferringSegmentation
    prepared: Any
    processor: DetrisProcessor
    validation: EvaluationSamples
    arguments: TrainingArguments
    options: Mapping[str, Any]
    trained_on: Sequence[str]

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir)

    def write(self, progress: Progress) -> None:
        """Write the model to `last/`, and to `best/` if its evaluation is the best, then the history and the plots.

        Raises:
            OSError: something could not be written.
        """
        # All ranks take part in gathering sharded weights, and in a forward pass with them.
        sharded = is_sharded(self.accelerator)
        state: Any = self.accelerator.get_state_dict(self.prepared) if sharded else None
        failure = run_on_all_ranks(self.accelerator, lambda: self._write_files(progress, state), main_only=True)
        failure = failure or run_on_all_ranks(self.accelerator, self._plot_predictions, main_only=not sharded)
        if failure:
            raise OSError(
                f"{self.folder}: the results of step {progress.step} could not be written ({failure}); fix the error, "
                "then resume from the last checkpoint with --resume latest."
            )

    def _write_files(self, progress: Progress, state: Any) -> None:
        history, best = progress.history, progress.best(self.arguments.selection_metric)
        for name in ("last", "best") if best is history[-1] else ("last",):
            with atomic_write_dir(self.folder / name) as folder:
                self.model.save_pretrained(folder, state_dict=state)
                self.processor.save_pretrained(folder)
                write_model_card(folder, self._training_results(history[-1]))
        write_history(self.folder, self.options, history, best)
        plot_curves(history, self.folder / CURVES_FILE)

    def _plot_predictions(self) -> None:
        file = self.folder / PREDICTIONS_FILE if self.accelerator.is_main_process else BytesIO()
        plot_predictions(self.model, self.processor, self.validation, file)

    def _training_results(self, record: Mapping[str, float]) -> TrainingResults:
        """Return the content of the model card for one evaluation."""
        dataset = str(self.options.get("dataset", ", ".join(self.trained_on)))
        split = str(self.options.get("val_split", "validation"))
        options = {**self.options, "num_processes": self.accelerator.num_processes}
        return TrainingResults(record, dataset, split, self.trained_on, options)

    def push_best(self) -> None:
        """Upload `best/` to the Hub if `push_to_hub` is set. If that fails, the error names the local folder."""
        try:
            if self.arguments.push_to_hub and self.accelerator.is_main_process:
                name, private = self.arguments.push_to_hub, self.arguments.hub_private or None
                pushed = push_folder(self.folder / "best", name, private=private)
                self.accelerator.print(f"Pushed {self.folder / 'best'}: {pushed.commit_url}")
        finally:  # the other ranks must not hang after an error, which only the main rank reports
            self.accelerator.wait_for_everyone()


def write_history(folder: Path, options: Mapping[str, Any], history: Sequence[Mapping[str, float]], best: Any) -> None:
    """Write `metrics.jsonl`, one line per evaluation, and `metrics.json` with the options and the best evaluation."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))
    write_json(folder / "metrics.json", {"arguments": dict(options), "best": best, "history": list(history)})
