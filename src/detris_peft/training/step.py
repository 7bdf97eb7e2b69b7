"""Training step: forward and backward of one batch, and an optimizer step per accumulation group."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from .arguments import TrainingArguments
from .batching import GlobalBatches, StreamedBatches
from .distributed import SumOverRanks
from .ema import ExponentialMovingAverage
from .guards import describe_gradients, memory_advice, running_statistics
from .masked_view import MaskedView
from .progress import Progress
from .schedule import scheduled_rate
from .signals import StopSignals

_MODEL_INPUTS = ("pixel_values", "input_ids", "labels")
_MAX_CONSECUTIVE_SKIPS = 20  # after more skipped batches in a row, the weights themselves have diverged


class _Unread(NamedTuple):
    """The loss of a batch that has not been read from the device, and where it was, for an error message."""

    loss: SumOverRanks
    where: str
    references: list[Any]


class TrainingStep:
    """Trains on one batch at a time.

    Reading the loss of a batch waits for the device. On a GPU, it is therefore read after the next batch has been
    started (`reads_late`). If it is not finite, the weights have then been updated with it, but nothing was saved. To
    skip such a batch (`on_nan`), its loss must be read before the update.

    Args:
        arguments: training arguments.
        accelerator: the run's accelerator.
        model: the model as prepared by accelerate.
        optimizer: prepared by accelerate.
        batches: provides the scale of each batch's loss.
        signals: checked on all ranks in each step.
        ema: updated after each optimizer step.
        masked_view: makes a second view of each batch for `distill_masked_view`.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        batches: GlobalBatches | StreamedBatches,
        signals: StopSignals,
        ema: ExponentialMovingAverage | None,
        masked_view: MaskedView | None = None,
    ) -> None:
        self.arguments, self.accelerator, self.model, self.optimizer = arguments, accelerator, model, optimizer
        self.batches, self.signals, self.ema, self.masked_view = batches, signals, ema, masked_view
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.consecutive_skips = 0
        self.reads_late = arguments.on_nan == "stop" and accelerator is not None and accelerator.device.type != "cpu"
        self._unread: _Unread | None = None

    @property
    def learning_rate(self) -> float:
        """Learning rate of the head in the last step; that of the adapters if the head is frozen."""
        return self.optimizer.param_groups[0]["lr"]

    def run(self, batch: dict[str, Any], progress: Progress) -> tuple[float | None, bool]:
        """Train on a batch; if it completes an accumulation group, update the weights.

        Returns:
            The mean loss over the samples of all ranks, or None if the batch was skipped; and whether any rank
            received a signal. With `reads_late`, both are those of the batch before, and the loss of the first one is
            None.

        Raises:
            ValueError: the loss is not finite, and `on_nan` is stop or too many batches were skipped in a row.
            MemoryError: the batch does not fit in memory.
        """
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = scheduled_rate(base, self.arguments, progress.epoch, progress.step + 1)
        statistics = running_statistics(self.model) if self.arguments.on_nan == "skip" else {}
        with memory_advice(self.arguments), self.accelerator.accumulate(self.model):
            loss = self.model(**self._model_inputs(batch, progress)).loss
            part = loss.detach().float() * self.batches.fraction(progress.batch)
            total = SumOverRanks(self.accelerator, part, bool(self.signals.received))
            if self.reads_late:
                self.accelerator.backward(loss * self.batches.loss_scale(progress.batch))
                self._update_weights()
                result = self.finish()
                self._unread = _Unread(total, _position(progress), list(batch["ref_ids"]))
                return result
            mean, stop = total.read()
            if math.isfinite(mean):
                self.accelerator.backward(loss * self.batches.loss_scale(progress.batch))
                self._update_weights()
                return mean, stop
            if self.arguments.on_nan == "stop" or self.consecutive_skips == _MAX_CONSECUTIVE_SKIPS:
                self._raise_non_finite(mean, loss, batch, progress)
            # If the batch completes an accumulation group, the entire group is skipped.
            progress.skipped_batches += 1
            self.consecutive_skips += 1
            self.optimizer.zero_grad()
            for buffer, value in statistics.items():
                buffer.copy_(value)
        return None, stop

    def finish(self) -> tuple[float | None, bool]:
        """Read the loss of the last batch, if that was not done; return what `run` returns.

        Raises:
            ValueError: the loss is not finite.
        """
        if self._unread is None:
            return None, False
        unread, self._unread = self._unread, None
        mean, stop = unread.loss.read()
        if not math.isfinite(mean):
            rows = gather_object(unread.references)
            raise ValueError(
                f"{unread.where}: expected a finite loss, got {mean} (references {rows}); nothing was saved after it: "
                "lower learning_rate, set max_grad_norm, use bf16 instead of fp16, or set --on_nan skip."
            )
        return mean, stop

    def _model_inputs(self, batch: dict[str, Any], progress: Progress) -> dict[str, torch.Tensor]:
        inputs = {name: batch[name] for name in _MODEL_INPUTS}
        if self.masked_view is None:
            return inputs
        masked = self.masked_view(inputs["pixel_values"], inputs["input_ids"], progress.epoch, progress.batch)
        return {**inputs, **masked}

    def _update_weights(self) -> None:
        """Clip the gradients and update the weights and their average, if the accumulation group is complete."""
        accelerator, max_grad_norm = self.accelerator, self.arguments.max_grad_norm
        if accelerator.sync_gradients and max_grad_norm:
            accelerator.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.consecutive_skips = 0
        if self.ema is not None and accelerator.sync_gradients and not self.optimizer.step_was_skipped:
            self.ema.update()

    def _raise_non_finite(self, mean: float, loss: torch.Tensor, batch: dict[str, Any], progress: Progress) -> None:
        self.accelerator.backward(loss)
        self.accelerator.unscale_gradients()  # undo the loss scaling of fp16
        rows = gather_object(list(batch["ref_ids"]))
        gradients = describe_gradients(self.accelerator.unwrap_model(self.model))
        skips = self.arguments.on_nan == "skip"
        raise ValueError(
            f"{_position(progress)}: expected a finite loss, "
            f"got {mean}{f' after {_MAX_CONSECUTIVE_SKIPS} skipped batches' if skips else ''} (references {rows}; "
            f"{gradients}); lower learning_rate, set max_grad_norm, use bf16 instead of fp16"
            f"{'' if skips else ', or set --on_nan skip'}."
        )


def _position(progress: Progress) -> str:
    return f"epoch {progress.epoch}, batch {progress.batch + 1}, step {progress.step + 1}"
