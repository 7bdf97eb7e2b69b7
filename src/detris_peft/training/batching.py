"""Which batch holds which samples, and what its loss and its learning rate are: functions of the position alone.

Nothing here has a state, so a run that goes on from a checkpoint does what the uninterrupted one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches


class GlobalBatches:
    """Batch sampler of one process: its part of each global batch of batch_size × processes consecutive samples.

    Each sample is visited exactly once whatever the number of processes: nothing is padded, and the last global batch
    is shared out as evenly as it goes. If it holds fewer samples than there are processes, it joins the one before.

    Args:
        samples: how many there are.
        batch_size: samples of a batch and process.
        processes, index: how many processes, and which of them this is.
        accumulation: batches to a step of the optimizer.

    Raises:
        ValueError: there are fewer samples than processes.
    """

    def __init__(self, samples: int, batch_size: int, processes: int = 1, index: int = 0, accumulation: int = 1):
        if samples < processes:
            raise ValueError(f"{samples} rows cannot be shared by {processes} processes: use {samples} at most.")
        self.processes, self.index, self.accumulation = processes, index, accumulation
        self.batch_size = batch_size
        starts = list(range(0, samples, batch_size * processes))
        if len(starts) > 1 and samples - starts[-1] < processes:
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], samples], strict=True))
        self.first = 0  # the batch to begin with

    @property
    def total(self) -> int | None:
        """Batches of an epoch."""
        return len(self.bounds)

    def begin(self, loader: Any, first: int) -> Any:
        """The loader over these batches, from the batch `first` on."""
        self.first = first
        return loader

    def __len__(self) -> int:
        return len(self.bounds) - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, len(self.bounds)):
            yield list(range(*self._part(batch)))

    def _part(self, batch: int) -> tuple[int, int]:
        start, stop = self.bounds[batch]
        cuts = [start + (stop - start) * i // self.processes for i in (self.index, self.index + 1)]
        return cuts[0], cuts[1]

    def share(self, batch: int) -> float:
        """What to multiply this process' mean loss with, so that a step takes the mean over all of its samples.

        Gradients are averaged over processes and divided by `accumulation`; that is the mean if all parts are equal.
        """
        start, stop = self._part(batch)
        first = batch - batch % self.accumulation
        group = self.bounds[first : first + self.accumulation]
        return (stop - start) * self.processes * self.accumulation / (group[-1][1] - group[0][0])

    def weight(self, batch: int) -> float:
        """This process' part of the global batch, as a share of 1."""
        start, stop = self._part(batch)
        return (stop - start) / (self.bounds[batch][1] - self.bounds[batch][0])


class StreamedBatches:
    """The same for rows that come as a stream: their number is not known, accelerate shares them out."""

    total = None

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def begin(self, loader: Any, first: int) -> Any:
        """What comes before the batch `first` is read and passed over: a stream cannot be entered elsewhere."""
        return skip_first_batches(loader, first) if first else loader

    def share(self, batch: int) -> float:
        return 1.0

    def weight(self, batch: int) -> float:
        return 1 / self.processes
