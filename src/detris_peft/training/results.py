"""Results of a run: the folders `last/` and `best/`, the metrics files and the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..atomic import atomic_write_dir, atomic_write_file, write_json, write_text
from ..data import EvaluationSamples
from ..modeling import DetrisForReferringSegmentation
from ..modeling.hub import push_folder
from ..modeling.hub_benchmarks import HubBenchmark
from ..modeling.model_card import TrainingResults, write_model_card
from ..processing_detris import DetrisProcessor
from ..visualization import plot_curves, plot_predictions
from .arguments import TrainingArguments
from .distributed import is_sharded, run_on_all_ranks
from .progress import Progress
from .try_command import describe_checkpoint

PREDICTIONS_FILE, CURVES_FILE = "predictions.png", "curves.png"


@dataclass
class ResultsWriter:
    """Writes the results after each evaluation; at the end, reports and uploads the best ones.

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
        image = BytesIO()
        failure = run_on_all_ranks(self.accelerator, lambda: self._write_files(progress, state), main_only=True)
        failure = failure or run_on_all_ranks(
            self.accelerator, lambda: self._plot_predictions(image), main_only=not sharded
        )
        failure = failure or run_on_all_ranks(
            self.accelerator, lambda: self._write_image(progress, image.getvalue()), main_only=True
        )
        if failure:
            raise OSError(
                f"{self.folder}: the results of step {progress.step} could not be written ({failure}); fix the error, "
                "then resume from the last checkpoint with --resume latest."
            )

    def _write_files(self, progress: Progress, state: Any) -> None:
        history = progress.history
        for name in self._written(progress):
            with atomic_write_dir(self.folder / name) as folder:
                self.model.save_pretrained(folder, state_dict=state)
                self.processor.save_pretrained(folder)
                write_model_card(folder, self._training_results(history[-1]))
        write_history(self.folder, self.options, history, progress.best(self.arguments.selection_metric))
        plot_curves(history, self.folder / CURVES_FILE)

    def _plot_predictions(self, image: BytesIO) -> None:
        plot_predictions(self.model, self.processor, self.validation, image)

    def _write_image(self, progress: Progress, image: bytes) -> None:
        """Write the image of predictions, and add it to the model cards if it may be published with them."""
        if not image:  # all selected rows were invalid
            return
        with atomic_write_file(self.folder / PREDICTIONS_FILE) as file:
            file.write_bytes(image)
        is_generated = {self._dataset, *self.trained_on} == {"refshapes"}
        if self.arguments.card_image == "always" or (self.arguments.card_image == "auto" and is_generated):
            for name in self._written(progress):
                write_model_card(self.folder / name, self._training_results(progress.history[-1]), image)

    def _written(self, progress: Progress) -> list[str]:
        """Return the folders that the latest evaluation writes."""
        is_best = progress.best(self.arguments.selection_metric) is progress.history[-1]
        return ["last", "best"] if is_best else ["last"]

    @property
    def _dataset(self) -> str:
        return str(self.options.get("dataset", ", ".join(self.trained_on)))

    def _training_results(self, record: Mapping[str, float]) -> TrainingResults:
        """Return the content of the model card for one evaluation."""
        split = str(self.options.get("val_split", "validation"))
        options = {**self.options, "num_processes": self.accelerator.num_processes}
        benchmarks = [HubBenchmark.parse(text) for text in self.arguments.hub_benchmark]
        return TrainingResults(record, self._dataset, split, self.trained_on, options, benchmarks)

    def report(self, progress: Progress) -> None:
        """Print where the best checkpoint is, and a command that tries it."""
        if self.accelerator.is_main_process:
            metric = self.arguments.selection_metric
            for line in describe_checkpoint(self.folder, progress, metric, self.validation):
                self.accelerator.print(line)

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
    """Write `metrics.jsonl`, one line per evaluation, and `metrics.json` with the options and the best evaluation.

    The lines also contain the precision of the run.
    """
    precision = {"precision": options["precision"]} if "precision" in options else {}
    write_text(folder / "metrics.jsonl", "".join(json.dumps({**record, **precision}) + "\n" for record in history))
    write_json(folder / "metrics.json", {"arguments": dict(options), "best": best, "history": list(history)})
