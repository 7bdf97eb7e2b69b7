"""Position and history of a run, saved with each checkpoint as `progress.json`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..data import BadRowError
from ..errors import one_line
from ..safe_loading import read_json


@dataclass
class Progress:
    """Position and history of a run. With the weights and accelerate's files, it determines the next step."""

    epoch: int = 1  # current epoch, 1-based
    batch: int = 0  # completed batches of this epoch
    step: int = 0  # optimizer steps over all epochs
    loss_sum: float = 0.0  # over the batches since the last evaluation
    loss_count: int = 0
    skipped_batches: int = 0  # because of a non-finite loss
    history: list[dict[str, float]] = field(default_factory=list)  # one record per evaluation
    bad_rows: dict[str, str] = field(default_factory=dict)  # message → kind

    @classmethod
    def read(cls, file: Path) -> Progress:
        """Read `progress.json`.

        Raises:
            ValueError: the file is not JSON, or its fields are not those of this class.
        """
        content = read_json(file)
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(
                f"{file}: expected the position of a run, got other fields ({one_line(error)}); resume from another "
                "checkpoint."
            ) from None

    @property
    def mean_loss(self) -> float:
        """Mean training loss since the last evaluation."""
        return self.loss_sum / max(self.loss_count, 1)

    @property
    def is_evaluated(self) -> bool:
        """Whether the current step has been evaluated."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    def evaluation_is_due(self, eval_steps: int) -> bool:
        """Return whether to evaluate now: every `eval_steps` steps, or at the end of each epoch if it is 0."""
        if not self.step or self.is_evaluated:
            return False
        return self.step % eval_steps == 0 if eval_steps else self.batch == 0

    def best(self, metric: str) -> dict[str, float]:
        """Return the evaluation with the highest value of a metric."""
        return max(self.history, key=lambda record: record[metric])

    def evaluations_since_best(self, metric: str) -> int:
        """Return the number of evaluations after the best one."""
        return len(self.history) - 1 - self.history.index(self.best(metric))

    def add_loss(self, loss: float | None) -> None:
        """Add the loss of a batch to the mean; None: no batch, or one that was skipped."""
        if loss is not None:
            self.loss_sum += loss
            self.loss_count += 1

    def add_evaluation(self, metrics: dict[str, float], learning_rate: float) -> dict[str, float]:
        """Append an evaluation to the history, reset the mean loss, and return the new record."""
        finished_epoch = self.epoch - (self.batch == 0)  # `epoch` is incremented at the end of an epoch
        record = {"epoch": finished_epoch, "step": self.step, "train_loss": self.mean_loss}
        self.history.append({**record, "learning_rate": learning_rate, **metrics})
        self.loss_sum, self.loss_count = 0.0, 0
        return self.history[-1]

    def add_bad_rows(self, bad_rows: Iterable[BadRowError]) -> None:
        """Record invalid rows for the list at the end of the run."""
        self.bad_rows.update({str(error): error.kind for error in bad_rows})
