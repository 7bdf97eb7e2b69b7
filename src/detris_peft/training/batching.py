"""Stateless batching: the samples of a batch and the scale of its loss depend on the batch number alone.

A resumed run therefore sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches


class GlobalBatches:
    """Batch sampler of one rank: its part of each global batch of batch_size × num_processes consecutive samples.

    The last, incomplete global batch is dropped, or with `drop_last=False` split as evenly as possible. If it then
    holds fewer samples than there are ranks, it is merged with the batch before it. No sample is visited twice.

    Args:
        num_samples: size of the dataset.
        batch_size: batch size per process.
        num_processes: number of ranks.
        process_index: this rank.
        accumulation: batches per optimizer step.
        drop_last: whether the last, incomplete global batch is dropped.

    Raises:
        ValueError: the dataset has fewer samples than a global batch, or without `drop_last` than ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        drop_last: bool = True,
    ) -> None:
        global_size = batch_size * num_processes
        if drop_last and num_samples < global_size:
            processes = f" for each of {num_processes} processes" if num_processes > 1 else ""
            raise ValueError(
                f"batch_size: expected at most the {num_samples} rows of the training split, got {batch_size}"
                f"{processes}, so that every epoch would be dropped as one incomplete batch; use a smaller "
                "--batch_size, or train on incomplete batches with --drop_last false."
            )
        if num_samples < num_processes:
            raise ValueError(
                f"expected at least one row per process, got {num_samples} rows for {num_processes} processes; start "
                f"at most {num_samples}."
            )
        self.num_processes, self.process_index, self.accumulation = num_processes, process_index, accumulation
        self.batch_size = batch_size
        if drop_last:
            num_samples -= num_samples % global_size
        starts = list(range(0, num_samples, global_size))
        if len(starts) > 1 and num_samples - starts[-1] < num_processes:
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], num_samples], strict=True))
        self.first = 0

    @property
    def per_epoch(self) -> int | None:
        """Number of batches per epoch."""
        return len(self.bounds)

    def start_at(self, loader: Any, first: int) -> Any:
        """Return the loader over these batches, starting at batch `first`."""
        self.first = first
        return loader

    def __len__(self) -> int:
        return len(self.bounds) - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, len(self.bounds)):
            yield list(range(*self._part(batch)))

    def _part(self, batch: int) -> tuple[int, int]:
        """Return the first and the last (exclusive) sample of this rank in a global batch."""
        start, stop = self.bounds[batch]
        cuts = [start + (stop - start) * i // self.num_processes for i in (self.process_index, self.process_index + 1)]
        return cuts[0], cuts[1]

    def loss_scale(self, batch: int) -> float:
        """Return the factor for this rank's mean loss that makes a step use the mean over all of its samples.

        Gradients are averaged over ranks and divided by `accumulation`. For parts of equal size, that is already the
        mean over all samples, and the factor is 1.
        """
        start, stop = self._part(batch)
        first = batch - batch % self.accumulation
        group = self.bounds[first : first + self.accumulation]
        return (stop - start) * self.num_processes * self.accumulation / (group[-1][1] - group[0][0])

    def fraction(self, batch: int) -> float:
        """Return this rank's fraction of the samples of a global batch."""
        start, stop = self._part(batch)
        return (stop - start) / (self.bounds[batch][1] - self.bounds[batch][0])


class StreamedBatches:
    """Batches of a stream: their number is unknown, and accelerate splits them over the ranks."""

    per_epoch = None

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes

    def start_at(self, loader: Any, first: int) -> Any:
        """Return the loader, starting at batch `first`. Earlier ones are read and dropped: streams cannot seek."""
        return skip_first_batches(loader, first) if first else loader

    def loss_scale(self, batch: int) -> float:
        return 1.0

    def fraction(self, batch: int) -> float:
        return 1 / self.num_processes
