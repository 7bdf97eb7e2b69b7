"""Training loop: `train` creates a run, which trains epoch by epoch, and evaluates and saves in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from ..data import BadRows, EvaluationSamples, iterate_batches
from ..data.workers import explained_worker_errors
from ..evaluation import evaluate
from ..metric_names import METRIC_NAMES, NO_TARGET_METRIC_NAMES
from ..metrics import format_metrics
from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor
from ..progress import progress_bar
from .arguments import TrainingArguments
from .batching import GlobalBatches, StreamedBatches
from .checkpoints import Checkpoints
from .checks import check_inputs
from .data_loading import create_loader, describe_mirroring, describe_mosaics
from .distributed import SumOverRanks, create_accelerator, run_on_all_ranks
from .fingerprint import run_fingerprint
from .guards import memory_advice
from .masked_view import MaskedView
from .optimizer import trains_unused_weights
from .output_dir import claimed_output_dir
from .preparation import prepare_model
from .progress import Progress
from .results import PREDICTIONS_FILE, ResultsWriter
from .run_json import write_run_json
from .signals import StopSignals, TrainingInterrupted
from .step import TrainingStep
from .trackers import Trackers, check_trackers


def train(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    train_rows: datasets.Dataset | datasets.IterableDataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
    options: Mapping[str, Any] | None = None,
    bad_rows: BadRows | None = None,
) -> list[dict[str, float]]:
    """Train adapters and head, evaluate, and save the best model, the last model, and checkpoints to resume from.

    Args:
        model: a new or a loaded model; trained in place.
        processor: saved with every checkpoint.
        train_rows: dataset with the columns of `detris_peft.data.FEATURES`; may be a stream.
        val_rows: dataset with the same columns; not a stream.
        arguments: training arguments.
        options: further options for `run.json`, such as the dataset's name.
        bad_rows: rows that the readers skipped; listed at the end, together with those found during training.

    Returns:
        One record per evaluation with `epoch`, `step`, `train_loss` (mean since the previous evaluation),
        `learning_rate`, and the validation `loss` and metrics. The records are also written to `metrics.jsonl` in
        `arguments.output_dir`, next to `run.json`, `best/`, `last/`, `checkpoints/`, `curves.png` and
        `predictions.png`.

    Raises:
        TypeError: an argument has another type; the message names it.
        ValueError: the dataset is empty or smaller than a batch, output_dir holds another run or another process
            trains in it, the loss is not finite, or the checkpoint to resume from does not fit.
        OSError: a file could not be written, or a DataLoader worker was killed.
        MemoryError: a step does not fit in memory; the message suggests options to change.
        TrainingInterrupted: after SIGINT or SIGTERM, once the run is saved.
    """
    check_inputs(model, processor, train_rows, val_rows, arguments)
    check_trackers(arguments.report_to)
    accelerator = create_accelerator(arguments, finds_unused_parameters=trains_unused_weights(model.config))
    loading = create_loader(train_rows, processor, arguments, accelerator)
    with claimed_output_dir(accelerator, arguments), explained_worker_errors():
        run = _Run(accelerator, loading, model, processor, train_rows, val_rows, arguments, options or {}, bad_rows)
        with run.signals:
            run.train()
        run.finish()
    return run.progress.history


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        accelerator: Accelerator,
        loading: tuple[Any, GlobalBatches | StreamedBatches],
        model: DetrisForReferringSegmentation,
        processor: DetrisProcessor,
        train_rows: datasets.Dataset | datasets.IterableDataset,
        val_rows: datasets.Dataset,
        arguments: TrainingArguments,
        options: Mapping[str, Any],
        bad_rows: BadRows | None,
    ) -> None:
        self.accelerator, self.arguments, self.model, self.processor = accelerator, arguments, model, processor
        self.options = {**options, **asdict(arguments)}
        # Seeds dropout, per rank. Data order and expressions are drawn from the samples' own generator.
        set_seed(arguments.seed, device_specific=True)
        self.loader, self.batches = loading
        for line in filter(None, (describe_mirroring(train_rows, arguments), describe_mosaics(self.loader.dataset))):
            accelerator.print(line)
        self.validation = EvaluationSamples(
            val_rows, skip_bad_rows=arguments.skip_bad_rows, no_target_pairs=arguments.no_target_ratio > 0
        )
        # Computed before FSDP or DeepSpeed shard the weights.
        fingerprint = run_fingerprint(model, processor, train_rows, val_rows, arguments, accelerator)
        self.prepared, self.optimizer, self.ema = prepare_model(model, arguments, accelerator)
        self.checkpoints = Checkpoints(
            Path(arguments.output_dir), accelerator, fingerprint, arguments.save_total_limit, self.ema
        )
        is_stream = isinstance(train_rows, datasets.IterableDataset)
        trained_on = [] if is_stream else sorted(set(train_rows["dataset"]))
        self.results = ResultsWriter(
            accelerator, model, self.prepared, processor, self.validation, arguments, self.options, trained_on
        )
        self.trackers = Trackers(accelerator)
        self.signals = StopSignals()
        self.step = TrainingStep(
            arguments,
            accelerator,
            self.prepared,
            self.optimizer,
            self.batches,
            self.signals,
            self.ema,
            MaskedView(processor, arguments, accelerator.process_index) if arguments.distill_masked_view else None,
        )
        self.progress = Progress()
        self.reader_bad_rows = bad_rows if bad_rows is not None else BadRows()  # grows while a stream is read
        self.progress.add_bad_rows(self.reader_bad_rows)

    # -- run ----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Resume if requested, then train and evaluate until the last epoch, early stopping or a signal."""
        arguments = self.arguments
        if arguments.resume:
            self._resume(arguments.resume)
        self._write_run_json()
        self.trackers.start(self.options)
        try:
            if self.progress.evaluation_is_due(arguments.eval_steps):  # the run was interrupted while evaluating
                self._evaluate_and_save()
            while self.progress.epoch <= arguments.epochs and not self._stops_early():
                self._train_epoch()
            if not self.progress.is_evaluated:
                self._evaluate_and_save()
        except _Stopped:
            self._save_and_interrupt()
        finally:
            self.trackers.end()

    def _write_run_json(self) -> None:
        folder, resumed = Path(self.arguments.output_dir), bool(self.arguments.resume)

        def write() -> None:
            write_run_json(folder, self.options, self.accelerator.num_processes, resumed)

        if failure := run_on_all_ranks(self.accelerator, write, main_only=True):
            raise OSError(f"{folder}: run.json could not be written ({failure}); fix the error and start again.")

    def finish(self) -> None:
        """Report skipped data and the best checkpoint, and push it to the Hub, after everything is saved.

        Signal handlers are the default ones.
        """
        self.progress.add_bad_rows(self.reader_bad_rows)
        self._report_skipped()
        self.results.report(self.progress)
        self.results.push_best()

    def _resume(self, resume: str) -> None:
        restored = self.checkpoints.load(resume)
        if restored is not None:
            restored.bad_rows.update(self.progress.bad_rows)
            self.progress = restored
            if restored.epoch > self.arguments.epochs:
                self.accelerator.print(
                    f"All {self.arguments.epochs} epochs are trained already; nothing is left to train."
                )

    def _stops_early(self) -> bool:
        patience, metric = self.arguments.early_stopping_patience, self.arguments.selection_metric
        return bool(patience and self.progress.history) and self.progress.evaluations_since_best(metric) >= patience

    # -- epoch --------------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """Train the current epoch from the current batch on."""
        progress, first_batch, number = self.progress, self.progress.batch, 0
        for batch, is_last in self._remaining_batches():
            loss, stop = self.step.run(batch, progress)
            progress.batch, number = progress.batch + 1, number + 1
            progress.add_loss(loss)
            progress.bad_rows.update({message: kind for kind, message in batch.get("bad_rows", ())})
            if not self.accelerator.sync_gradients:
                continue
            progress.step += 1
            if loss is not None and progress.step % self.arguments.logging_steps == 0:
                self.trackers.log({"train/loss": loss, "train/learning_rate": self.step.learning_rate}, progress.step)
            if is_last:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            if stop or self._is_due():
                loss, stopped = self.step.finish()
                progress.add_loss(loss)
                stop = stop or stopped
            if stop:
                raise _Stopped
            if not is_last:  # the evaluation after the last batch runs once the progress bar is closed
                self._evaluate_or_save_if_due()
                if self._stops_early():
                    return
        if not number:
            raise ValueError(
                f"train_rows: expected a batch after batch {first_batch} of epoch {progress.epoch} of the stream, got "
                "none; check that it can be read more than once, has the same rows when resuming, and enough rows for "
                "a batch per worker (smaller --batch_size or --num_workers, or --drop_last false)."
            )
        self._evaluate_or_save_if_due()

    def _remaining_batches(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield each remaining batch of the epoch and whether it is the last, with a progress bar."""
        progress = self.progress
        self.loader.set_epoch(progress.epoch)  # sets the epoch of the samples too
        loader = self.batches.start_at(self.loader, progress.batch)
        bar = progress_bar(
            desc=f"epoch {progress.epoch}/{self.arguments.epochs}",
            total=self.batches.per_epoch,
            initial=progress.batch,
            unit="batch",
            disable=not self.accelerator.is_main_process,
        )
        samples, start = 0, time.perf_counter()
        with bar:
            for batch in iterate_batches(loader):
                yield self.processor.normalize_bytes(batch), self.accelerator.gradient_state.end_of_dataloader
                samples += len(batch["ref_ids"]) * self.accelerator.num_processes
                bar.set_postfix_str(
                    f"loss {progress.mean_loss:.4f}, lr {self.step.learning_rate:.1e}, "
                    f"{samples / (time.perf_counter() - start):.1f} samples/s, {_memory(self.accelerator.device)}",
                    refresh=False,
                )
                bar.update()

    def _is_due(self) -> bool:
        """Return whether the run is at the end of an epoch, or evaluates or saves now."""
        is_saved = bool(self.arguments.save_steps) and self.progress.step % self.arguments.save_steps == 0
        return not self.progress.batch or is_saved or self.progress.evaluation_is_due(self.arguments.eval_steps)

    def _evaluate_or_save_if_due(self) -> None:
        if self.progress.evaluation_is_due(self.arguments.eval_steps):
            self._evaluate_and_save()
        elif self.arguments.save_steps and self.progress.step % self.arguments.save_steps == 0:
            self._save()

    # -- evaluate and save --------------------------------------------------------------------------------------------

    def _evaluate_and_save(self) -> None:
        with self.ema.applied() if self.ema else nullcontext():
            metrics = self._evaluate()
            train_loss = self.progress.mean_loss
            record = self.progress.add_evaluation(metrics, self.step.learning_rate)
            scores = format_metrics({name: value for name, value in metrics.items() if name != "loss"})
            self.accelerator.print(f"epoch {record['epoch']}: train loss {train_loss:.4f}  val {scores}")
            self.results.write(self.progress)
            self._log_evaluation(record)
        self._save()

    def _evaluate(self) -> dict[str, float]:
        arguments = self.arguments
        bad_rows = BadRows() if arguments.skip_bad_rows else None
        # Evaluation must not advance the generator that dropout uses, so that its frequency does not affect training.
        with memory_advice(arguments, evaluating=True), torch.random.fork_rng(devices=[]):
            metrics = evaluate(
                self.prepared,
                self.processor,
                self.validation,
                accelerator=self.accelerator,
                batch_size=arguments.eval_batch_size,
                num_workers=arguments.num_workers,
                bad_rows=bad_rows,
                on_batch=self._raise_if_signaled,
            )
        self.progress.add_bad_rows(bad_rows or ())
        return metrics

    def _raise_if_signaled(self) -> None:
        nothing = torch.zeros((), device=self.accelerator.device)
        if SumOverRanks(self.accelerator, nothing, bool(self.signals.received)).read()[1]:
            raise _Stopped

    def _log_evaluation(self, record: Mapping[str, float]) -> None:
        names = (*METRIC_NAMES, *NO_TARGET_METRIC_NAMES, "loss")
        self.trackers.log({f"val/{k}": v for k, v in record.items() if k in names}, self.progress.step)
        self.trackers.log_image("predictions", Path(self.arguments.output_dir) / PREDICTIONS_FILE, self.progress.step)

    def _save(self) -> Path:
        gathered = gather_object(list(self.progress.bad_rows.items()))
        self.progress.bad_rows = dict(gathered)
        return self.checkpoints.save(self.progress)

    def _save_and_interrupt(self) -> None:
        """Save the run and raise TrainingInterrupted, whose message explains how to resume."""
        number = max(gather_object([self.signals.received]))
        folder = self._save()
        raise TrainingInterrupted(
            f"Stopped by {signal.Signals(number).name} after step {self.progress.step}; the run is saved in {folder}. "
            "To resume, run the same command with --resume latest.",
            number,
        )

    def _report_skipped(self) -> None:
        progress, output = self.progress, self.accelerator.print
        if progress.skipped_batches:
            output(f"{progress.skipped_batches} batches were skipped because their loss was not finite.")
        if progress.bad_rows:
            number = len(progress.bad_rows)
            output(f"{number} invalid {'row was' if number == 1 else 'rows were'} skipped:")
            for message, kind in progress.bad_rows.items():
                output(f"  {kind}: {message}")


class _Stopped(Exception):  # noqa: N818  not an error
    """Raised after a signal, and caught where the run can be saved."""


def _memory(device: torch.device) -> str:
    """Return the peak GPU memory, or the current memory of the process on CPU."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return f"{used / 2**30:.1f} GiB"
