"""Prediction jobs: many rows, cut into batches, predicted by one process or several ranks, and resumed after a kill.

A batch is `batch_size` consecutive rows of the input. Batches are cut before they are distributed: with w ranks,
rank r takes the batches r, r + w, r + 2w, and so on. The same rows are therefore always in one forward pass, and the
results are the same, byte for byte, for any number of ranks, if each process uses the same number of threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ..hashes import sha256_of_texts, sha256_of_weights
from ..progress import progress_bar
from .job_files import JobFiles, ResultWriter
from .pairs import Pair
from .predictor import DetrisPredictor
from .ranks import Ranks
from .row_predictor import RowResult, Rows


@dataclass(frozen=True)
class JobResult:
    """What a job did.

    Attributes:
        predicted: rows with a prediction.
        failed: rows that could not be predicted.
        earlier: rows that were done before the job was resumed.
        seconds: time for the rows that were not done before.
    """

    predicted: int
    failed: int
    earlier: int
    seconds: float


@dataclass(frozen=True)
class JobPlan:
    """Which batches of a job remain: those from row `start` on, except those of `done`, which are in the parts."""

    rows: int
    batch_size: int
    start: int = 0
    done: Collection[int] = ()

    @property
    def batches(self) -> list[int]:
        """Numbers of the remaining batches."""
        first, count = -(-self.start // self.batch_size), -(-self.rows // self.batch_size)
        return [batch for batch in range(first, count) if batch not in self.done]

    def rows_of(self, batch: int) -> range:
        """Return the rows of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.rows))


def run_job(
    predict: Callable[[Iterable[Rows]], Iterable[list[RowResult]]],
    pairs: Sequence[Pair],
    files: JobFiles,
    fingerprint: dict[str, Any],
    *,
    batch_size: int = 8,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> JobResult:
    """Predict all rows, and write the results in the order of the rows.

    Args:
        predict: yields the results of each batch, in order; for example `RowPredictor.stream`.
        pairs: the rows, the same on every rank.
        files: the files of the job.
        fingerprint: see `job_fingerprint`.
        batch_size: rows per forward pass.
        resume: continue a job that was interrupted; a new one starts if there is none.
        ranks: the ranks of a launch.

    Raises:
        ValueError: the interrupted job has another fingerprint.
        OSError: a file cannot be written; what was written before stays valid.
        KeyboardInterrupt: the job was interrupted; the message explains how to continue.
    """
    ranks = ranks or Ranks()
    with files.locked() if ranks.is_main else nullcontext():
        plan = ranks.on_main(lambda: plan_job(files, fingerprint, len(pairs), batch_size, resume))
        batches = plan.batches
        in_parts = ranks.world > 1 or bool(plan.done)
        started = time.monotonic()
        own = batches[ranks.rank :: ranks.world]

        def run() -> None:
            with ResultWriter(files, ranks.rank if in_parts else None) as writer:
                rows = ([(row, pairs[row]) for row in plan.rows_of(batch)] for batch in own)
                for results in _with_progress(predict(rows), plan, own, ranks):
                    writer.write(results)

        try:
            ranks.on_all(run)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{files.output}: interrupted; continue with --resume") from None
        if in_parts:
            ranks.on_main(lambda: files.merge(plan.start, len(pairs)))
    failed = sum(1 for _ in files.failures())
    remaining = sum(len(plan.rows_of(batch)) for batch in batches)
    return JobResult(len(pairs) - failed, failed, len(pairs) - remaining, time.monotonic() - started)


def plan_job(files: JobFiles, fingerprint: dict[str, Any], rows: int, batch_size: int, resume: bool) -> JobPlan:
    """Start a job, or continue the one that was interrupted; return what remains. The files must be locked.

    Raises:
        ValueError: the interrupted job has another fingerprint.
        OSError: the files cannot be written.
    """
    if not resume or not files.continues():
        files.start(fingerprint)
        return JobPlan(rows, batch_size)
    files.check_fingerprint(fingerprint)
    start = files.truncate(rows, batch_size)
    return JobPlan(rows, batch_size, start, files.consolidate(start, rows, batch_size))


def job_fingerprint(
    predictor: DetrisPredictor,
    checkpoint: str,
    pairs: Sequence[Pair],
    threshold: float | None,
    save: Sequence[str],
    quantize: str | None = None,
) -> dict[str, Any]:
    """Return what the results depend on, keyed by name.

    The name of the checkpoint is only shown. Device, number of ranks, batch size and compilation may change when a job
    continues: they change results by rounding only.

    Args:
        predictor: with the weights of the checkpoint, before they are quantized.
        quantize: see `PredictionArguments`.
    """
    processor = predictor.processor
    return {
        "number_of_rows": len(pairs),
        "rows_sha256": sha256_of_texts(f"{pair.image}\0{pair.text}\0{pair.source}\n" for pair in pairs),
        "threshold": processor.mask_threshold if threshold is None else threshold,
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        "quantize": quantize,
        "save": sorted(save),
        "image_size": processor.image_size,
        "weights_sha256": sha256_of_weights(predictor.model.named_parameters()),
        "checkpoint": os.fspath(checkpoint),
    }


def _with_progress(
    results: Iterable[list[RowResult]], plan: JobPlan, own: Sequence[int], ranks: Ranks
) -> Iterator[list[RowResult]]:
    """Show progress in rows while yielding the results of each batch."""
    name = "predicting" if ranks.world == 1 else f"predicting (rank 0 of {ranks.world})"
    total = sum(len(plan.rows_of(batch)) for batch in own)
    done = plan.rows - total if ranks.world == 1 else 0
    with progress_bar(None, name, done + total, unit="image", initial=done, disable=not ranks.is_main) as bar:
        for batch in results:
            yield batch
            bar.update(len(batch))
