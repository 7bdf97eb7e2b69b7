"""The loop: batches, steps, evaluations, checkpoints."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import datasets
import psutil
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from accelerate.utils import DistributedType, gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..atomic import atomic_write_dir
from ..data import (
    BadRowError,
    BadRows,
    Collator,
    EvaluationSamples,
    StreamedSamples,
    TrainingSamples,
    batches,
)
from ..data.augmentation import RandomAugmentation
from ..data.workers import leave_signals_to_the_parent
from ..evaluation import evaluate
from ..metrics import METRIC_NAMES, NO_TARGET_METRIC_NAMES, format_metrics
from ..modeling import DetrisForReferringSegmentation
from ..modeling.hub import push_folder
from ..modeling.model_card import TrainingResults, write_model_card
from ..processing_detris import DetrisProcessor
from ..visualization import plot_curves, plot_predictions
from .arguments import TrainingArguments
from .batching import GlobalBatches, StreamedBatches
from .checkpoints import Checkpoints, Progress
from .distributed import together
from .ema import ExponentialMovingAverage
from .fingerprint import course_of
from .guards import describe_gradients, memory_advice, running_statistics
from .optimizer import create_optimizer
from .run_folder import take_folder, write_history, write_start
from .schedule import learning_rate
from .signals import StopSignals, TrainingInterrupted
from .sync_batch_norm import convert_sync_batch_norm
from .trackers import Trackers, check_trackers

_MODEL_INPUTS = ("pixel_values", "input_ids", "labels")
_TOO_MANY = 20  # batches skipped in a row: the weights themselves are lost


def train(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    train_rows: datasets.Dataset | datasets.IterableDataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
    options: Mapping[str, Any] | None = None,
    bad_rows: BadRows | None = None,
) -> list[dict[str, float]]:
    """Train adapters and head; evaluate; keep the best, the last, and checkpoints to go on from.

    Args:
        model: fresh or loaded; trained in place.
        processor: saved with every checkpoint.
        train_rows, val_rows: datasets with the columns of `detris_peft.data.FEATURES`; those to train on may be a
            stream.
        arguments: how.
        options: what else to note in `run.json`, such as the dataset's name.
        bad_rows: what the readers left out, to be listed at the end with what turns up on the way.

    Returns:
        A record an evaluation: `epoch`, `step`, `train_loss` (mean since the last one), `learning_rate`, and the
        validation's `loss` and metrics by name. The same stands in `metrics.jsonl` of `arguments.output_dir`, beside
        `run.json`, `best/`, `last/`, `checkpoints/`, `curves.png` and `predictions.png`.

    Raises:
        ValueError: the dataset is empty, the folder is taken, the loss is not finite, or what is to be resumed does
            not fit.
        OSError: something could not be written.
        MemoryError: a step does not fit; the message says what to turn.
        TrainingInterrupted: SIGINT or SIGTERM came; all is saved.
    """
    run = _Run(model, processor, train_rows, val_rows, arguments, options or {})
    run.read_badly = bad_rows if bad_rows is not None else BadRows()
    run.note(run.read_badly)
    with run.signals:
        run.run()
    run.finish()
    return run.progress.history


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        model: DetrisForReferringSegmentation,
        processor: DetrisProcessor,
        train_rows: datasets.Dataset | datasets.IterableDataset,
        val_rows: datasets.Dataset,
        arguments: TrainingArguments,
        options: Mapping[str, Any],
    ) -> None:
        if isinstance(val_rows, datasets.IterableDataset):
            raise ValueError("The rows to validate on come as a stream: load them whole, they are few.")
        number = None if isinstance(train_rows, datasets.IterableDataset) else len(train_rows)
        if number == 0 or not len(val_rows):
            raise ValueError(f"There are {number} rows to train on and {len(val_rows)} to validate: give both.")
        self.arguments, self.processor = arguments, processor
        self.options = {**options, **asdict(arguments)}
        self.folder = Path(arguments.output_dir)
        check_trackers(arguments.report_to)
        # A launcher's environment would win over the argument, and the batches' weights would not know.
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(arguments.gradient_accumulation_steps)
        self.accelerator = accelerator = Accelerator(
            # Without being told so, accelerate takes several processes on a CPU for so many runs of their own.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=arguments.mixed_precision,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            step_scheduler_with_optimizer=False,
            log_with=cast(Any, arguments.report_to or None),
            project_dir=self.folder,
        )
        self._take_folder()
        self.trackers = Trackers(accelerator)
        # Dropout, which each process draws for itself; order and sentences come from the samples' own generator.
        set_seed(arguments.seed, device_specific=True)
        self.loader, self.batches, self.trained_on = self._load(train_rows)
        self.validation = EvaluationSamples(val_rows, skip_bad_rows=arguments.skip_bad_rows)
        self.model = model
        # Before an engine takes the weights apart.
        course = course_of(model, processor, train_rows, val_rows, arguments, accelerator)
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if accelerator.num_processes > 1:
            convert_sync_batch_norm(model, accelerator.device)
        optimizer = create_optimizer(model, arguments.learning_rate)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            plugin: Any = accelerator.state.deepspeed_plugin
            plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=arguments.batch_size,
                gradient_accumulation_steps=arguments.gradient_accumulation_steps,
                gradient_clipping=arguments.max_grad_norm,
            )
        self.prepared, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = None
        if arguments.ema_decay:
            if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
                raise ValueError("ema_decay needs the weights whole in each process: leave it out, or train with DDP.")
            self.ema = ExponentialMovingAverage(model, arguments.ema_decay)
        self.checkpoints = Checkpoints(self.folder, accelerator, course, arguments.save_total_limit, self.ema)
        self.progress = Progress()
        self.skipped_in_a_row = 0
        self.read_badly = BadRows()  # by the readers; a stream's grows as it is read
        self.signals = StopSignals()

    def _load(self, rows: datasets.Dataset | datasets.IterableDataset) -> tuple[Any, Any, list[str]]:
        """The loader of the training rows, what it holds in which batch, and the datasets it is made of."""
        arguments, accelerator = self.arguments, self.accelerator
        sampling: dict[str, Any] = {
            "seed": arguments.seed,
            "skip_bad_rows": arguments.skip_bad_rows,
            "augment": RandomAugmentation() if arguments.augment else None,
            "is_visible": self.processor.is_visible,
            "image_size": self.processor.image_size,  # large JPEGs are decoded no larger than they are needed
        }
        loading: dict[str, Any] = {
            "num_workers": arguments.num_workers,
            "collate_fn": Collator(self.processor, keep_masks=False),
            "worker_init_fn": leave_signals_to_the_parent,
            # Of its own: the seeds of the readers' processes are not drawn from the generator that dropout uses.
            "generator": torch.Generator().manual_seed(arguments.seed),
        }
        if isinstance(rows, datasets.IterableDataset):
            loader = DataLoader(StreamedSamples(rows, **sampling), arguments.batch_size, **loading)
            # Sentences and the like cannot be sent from one process to the others: each reads the stream for itself.
            loader = prepare_data_loader(
                loader,
                accelerator.device,
                num_processes=accelerator.num_processes,
                process_index=accelerator.process_index,
                put_on_device=True,
                dispatch_batches=False,
            )
            return loader, StreamedBatches(accelerator.num_processes), []
        shared = GlobalBatches(
            len(rows),
            arguments.batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            arguments.gradient_accumulation_steps,
        )
        # accelerate's own sharding would fill up the last batches with samples that were visited already.
        loader = DataLoaderShard(
            TrainingSamples(rows, **sampling), accelerator.device, batch_sampler=shared, **loading
        )
        return loader, shared, sorted(set(rows["dataset"]))

    def _take_folder(self) -> None:
        resume, overwrite = bool(self.arguments.resume), self.arguments.overwrite_output_dir
        failure = together(self.accelerator, lambda: take_folder(self.folder, resume, overwrite), main_only=True)
        if failure:
            raise ValueError(failure)

    # -- the way of a run ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        arguments, accelerator = self.arguments, self.accelerator
        if arguments.resume:
            noted = self.progress.bad_rows
            self.progress = self.checkpoints.load(arguments.resume) or self.progress
            self.progress.bad_rows.update(noted)
        if accelerator.is_main_process:
            write_start(self.folder, self.options, accelerator.num_processes, bool(arguments.resume))
        self.trackers.start(self.options)
        try:
            if self._evaluation_is_due():  # the run was stopped while it evaluated
                self._evaluate_and_save()
            while self.progress.epoch <= arguments.epochs and not self._is_exhausted():
                self._epoch()
            if not self.progress.history or self.progress.history[-1]["step"] != self.progress.step:
                self._evaluate_and_save()
        except _Stopped:
            self._leave()
        finally:
            self.trackers.end()

    def finish(self) -> None:
        """What is left when all is trained and saved: a signal may end it as any program."""
        self.note(self.read_badly)
        self._say_what_was_left_out()
        self._push()

    def _epoch(self) -> None:
        """The running epoch from where it stands."""
        progress, begun = self.progress, self.progress.batch
        for batch, is_last in self._loaded():
            loss, stop = self._step(batch)
            progress.batch += 1
            if loss is not None:
                progress.loss_sum += loss
                progress.loss_count += 1
            progress.bad_rows.update({message: kind for kind, message in batch.get("bad_rows", ())})
            if not self.accelerator.sync_gradients:
                continue
            progress.step += 1
            if loss is not None and progress.step % self.arguments.logging_steps == 0:
                self.trackers.log({"train/loss": loss, "train/learning_rate": self._learning_rate}, progress.step)
            if is_last:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            if stop:
                raise _Stopped
            if not is_last:  # what follows the last is done when the epoch's bar is gone
                self._after_step()
                if self._is_exhausted():
                    return
        if progress.batch == begun > 0 or (progress.batch == begun and not progress.step):
            raise ValueError("The stream of training rows ended before it gave a batch: is it the same as before?")
        self._after_step()

    def _after_step(self) -> None:
        if self._evaluation_is_due():
            self._evaluate_and_save()
        elif self.arguments.save_steps and self.progress.step % self.arguments.save_steps == 0:
            self._save()

    def _loaded(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each batch that is left of the epoch, and whether it is the last, under a bar."""
        progress, arguments = self.progress, self.arguments
        self.loader.set_epoch(progress.epoch)  # and with it the samples'
        loader = self.batches.begin(self.loader, progress.batch)
        bar = tqdm(
            desc=f"epoch {progress.epoch}/{arguments.epochs}",
            total=self.batches.total,
            initial=progress.batch,
            unit="batch",
            leave=False,
            disable=not self.accelerator.is_main_process,
        )
        samples, start = 0, time.perf_counter()
        with bar:
            for batch in batches(loader):
                yield batch, self.accelerator.gradient_state.end_of_dataloader
                samples += len(batch["ref_ids"]) * self.accelerator.num_processes
                mean = progress.loss_sum / max(progress.loss_count, 1)
                bar.update()
                bar.set_postfix_str(
                    f"loss {mean:.4f}, lr {self._learning_rate:.1e}, "
                    f"{samples / (time.perf_counter() - start):.1f} samples/s, {_memory(self.accelerator.device)}"
                )

    def _step(self, batch: dict[str, Any]) -> tuple[float | None, bool]:
        """Forward and backward of one batch, and a step of the optimizer where its group is complete.

        Returns:
            The mean loss over the samples of all processes, None if the batch was skipped; and whether some process
            was told to stop.
        """
        arguments, accelerator, position = self.arguments, self.accelerator, self.progress.batch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(arguments, self.progress.epoch, self.progress.step + 1)
        statistics = running_statistics(self.model) if arguments.on_nan == "skip" else {}
        with memory_advice(arguments), accelerator.accumulate(self.prepared):
            loss = self.prepared(**{name: batch[name] for name in _MODEL_INPUTS}).loss
            mean, stop = self._over_processes(loss.detach().float() * self.batches.weight(position))
            if math.isfinite(mean):
                accelerator.backward(loss * self.batches.share(position))
                if accelerator.sync_gradients and arguments.max_grad_norm:
                    accelerator.clip_grad_norm_(_trained(self.prepared), arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.skipped_in_a_row = 0
                if self.ema is not None and accelerator.sync_gradients and not self.optimizer.step_was_skipped:
                    self.ema.update()
                return mean, stop
            if arguments.on_nan == "stop" or self.skipped_in_a_row == _TOO_MANY:
                self._report_not_finite(mean, loss, batch)
            # The step goes without this batch, and without its whole group where it completes one.
            self.progress.skipped_batches += 1
            self.skipped_in_a_row += 1
            self.optimizer.zero_grad()
            for buffer, value in statistics.items():
                buffer.copy_(value)
        return None, stop

    def _over_processes(self, part: torch.Tensor) -> tuple[float, bool]:
        """The sum of the processes' parts of a mean, and whether any of them was told to stop."""
        stop = float(bool(self.signals.received))
        both: Any = self.accelerator.reduce(torch.stack([part, torch.tensor(stop, device=part.device)]), "sum")
        total, stops = both.tolist()
        return total, stops > 0

    @property
    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _report_not_finite(self, mean: float, loss: torch.Tensor, batch: dict[str, Any]) -> None:
        self.accelerator.backward(loss)
        self.accelerator.unscale_gradients()  # of fp16's factor
        progress, rows = self.progress, gather_object(list(batch["ref_ids"]))
        or_skip = ", or --on_nan skip" if self.arguments.on_nan == "stop" else f" ({_TOO_MANY} before it were skipped)"
        raise ValueError(
            f"The loss became {mean} in epoch {progress.epoch}, batch {progress.batch + 1}, step {progress.step + 1}, "
            f"references {rows}; {describe_gradients(self.model)}: lower learning_rate, set max_grad_norm, use bf16 "
            f"in place of fp16{or_skip}."
        )

    # -- evaluating and saving ----------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        progress, every = self.progress, self.arguments.eval_steps
        if not progress.step or (progress.history and progress.history[-1]["step"] == progress.step):
            return False
        return progress.step % every == 0 if every else progress.batch == 0

    def _is_exhausted(self) -> bool:
        patience, metric = self.arguments.early_stopping_patience, self.arguments.selection_metric
        return bool(patience and self.progress.history) and self.progress.evaluations_since_best(metric) >= patience

    def _evaluate_and_save(self) -> None:
        arguments, progress, accelerator = self.arguments, self.progress, self.accelerator
        # Evaluating draws nothing from the generator that dropout goes on with, however often it is done.
        with self.ema.in_place() if self.ema else nullcontext():
            bad_rows = BadRows() if arguments.skip_bad_rows else None
            with memory_advice(arguments, evaluating=True), torch.random.fork_rng(devices=[]):
                metrics = evaluate(
                    self.prepared,
                    self.processor,
                    self.validation,
                    accelerator=accelerator,
                    batch_size=arguments.eval_batch_size,
                    num_workers=arguments.num_workers,
                    bad_rows=bad_rows,
                    on_batch=self._stop_if_told,
                )
            self.note(bad_rows or ())
            # At its end an epoch is counted already.
            record = {"epoch": progress.epoch - (progress.batch == 0), "step": progress.step}
            train_loss = progress.loss_sum / max(progress.loss_count, 1)
            progress.history.append(
                {**record, "train_loss": train_loss, "learning_rate": self._learning_rate, **metrics}
            )
            progress.loss_sum, progress.loss_count = 0.0, 0
            named = format_metrics({name: value for name, value in metrics.items() if name != "loss"})
            accelerator.print(f"epoch {record['epoch']}: train loss {train_loss:.4f}  val {named}")
            self._write_results()
        self._save()

    def _write_results(self) -> None:
        """The model as it is now to `last/`, and to `best/` if it is; the history and its images."""
        history, accelerator, grid = self.progress.history, self.accelerator, self.folder / "predictions.png"
        best = self.progress.best(self.arguments.selection_metric)
        # Sharded weights are gathered by all processes.
        state: Any = accelerator.get_state_dict(self.prepared) if self._is_sharded() else None

        def write() -> None:
            for name in ("last", "best") if best is history[-1] else ("last",):
                with atomic_write_dir(self.folder / name) as folder:
                    self.model.save_pretrained(folder, state_dict=state)
                    self.processor.save_pretrained(folder)
                    write_model_card(folder, self._results())
            write_history(self.folder, self.options, history, best)
            plot_curves(history, self.folder / "curves.png")

        def draw() -> None:
            file = grid if accelerator.is_main_process else BytesIO()
            plot_predictions(self.model, self.processor, self.validation, file)

        failure = together(accelerator, write, main_only=True)
        # Where weights are sharded, all processes take part in the forward.
        failure = failure or together(accelerator, draw, main_only=not self._is_sharded())
        if failure:
            raise OSError(
                f"The results of step {self.progress.step} could not be written to {self.folder} ({failure}): mend "
                "that; --resume latest goes on from the last checkpoint."
            )
        names = (*METRIC_NAMES, *NO_TARGET_METRIC_NAMES, "loss")
        self.trackers.log({f"val/{k}": v for k, v in history[-1].items() if k in names}, self.progress.step)
        self.trackers.log_image("predictions", grid, self.progress.step)

    def _results(self) -> TrainingResults:
        """The last evaluation, for the model card."""
        dataset = str(self.options.get("dataset", ", ".join(self.trained_on)))
        split = str(self.options.get("val_split", "validation"))
        options = {**self.options, "processes": self.accelerator.num_processes}
        return TrainingResults(self.progress.history[-1], dataset, split, self.trained_on, options)

    def _push(self) -> None:
        """Upload the best checkpoint; if that fails the weights stay where they are, and the message says where."""
        try:
            if self.arguments.push_to_hub and self.accelerator.is_main_process:
                name, private = self.arguments.push_to_hub, self.arguments.hub_private or None
                pushed = push_folder(self.folder / "best", name, private=private)
                self.accelerator.print(f"{self.folder / 'best'} was pushed: {pushed.commit_url}")
        finally:  # the others leave in peace whatever the Hub says, and the fault is told once
            self.accelerator.wait_for_everyone()

    def _save(self) -> Path:
        gathered = gather_object(list(self.progress.bad_rows.items()))
        self.progress.bad_rows = dict(gathered)
        return self.checkpoints.save(self.progress)

    def _stop_if_told(self) -> None:
        if self._over_processes(torch.zeros((), device=self.accelerator.device))[1]:
            raise _Stopped

    def _leave(self) -> None:
        """Save and say how to go on."""
        number = max(gather_object([self.signals.received]))
        folder = self._save()
        raise TrainingInterrupted(
            f"Stopped by {signal.Signals(number).name} after step {self.progress.step}; all is saved in {folder}. Go "
            "on with the same command and --resume latest.",
            number,
        )

    def note(self, bad_rows: Iterable[BadRowError]) -> None:
        """Keep what is wrong with these rows for the list at the end."""
        self.progress.bad_rows.update({str(error): error.kind for error in bad_rows})

    def _say_what_was_left_out(self) -> None:
        progress, say = self.progress, self.accelerator.print
        if progress.skipped_batches:
            say(f"{progress.skipped_batches} batches were skipped because their loss was not finite.")
        if progress.bad_rows:
            say(f"{len(progress.bad_rows)} bad {'row was' if len(progress.bad_rows) == 1 else 'rows were'} left out:")
            for message, kind in progress.bad_rows.items():
                say(f"  {kind}: {message}")

    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


class _Stopped(Exception):  # noqa: N818  it is no error
    """A signal came; unwinds to where the run can be saved."""


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def _memory(device: torch.device) -> str:
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return f"{used / 2**30:.1f} GiB"
