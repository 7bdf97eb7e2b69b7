"""The last lines of a run: where its best checkpoint is, and a command that tries it."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from pathlib import Path

from ..data import EvaluationSamples
from .progress import Progress

_EXAMPLE = ("photo.jpg", "the man on the left")
_TRIED_SAMPLES = 20  # the first ones, of which one becomes the example


def describe_checkpoint(folder: Path, progress: Progress, metric: str, samples: EvaluationSamples) -> list[str]:
    """Return one line about the best checkpoint of a run, and one with a `detris predict` command for it.

    If there is no `best/`, the lines are about `last/`; if that is missing too, there are none.

    Args:
        folder: the run's `output_dir`.
        progress: the history of the run.
        metric: the metric that selects the best checkpoint.
        samples: validation samples, of which the first suitable one is the command's example.
    """
    name = next((name for name in ("best", "last") if (folder / name).is_dir()), None)
    if name is None:
        return []
    line = f"{name} checkpoint: {folder / name}"
    if progress.history:
        record = progress.best(metric) if name == "best" else progress.history[-1]
        line += f" (epoch {record['epoch']}, step {record['step']}, {metric} {100 * record[metric]:.2f})"
    command = predict_command(folder / name, *find_example(samples))
    return [_encodable(text) for text in (line, f"try it: {command}")]


def predict_command(checkpoint: Path, image: str, text: str) -> str:
    """Return the `detris predict` command for one image and sentence, quoted for the shell."""
    options = {"checkpoint": str(checkpoint), "image": image, "text": text}
    # A value that starts with "-" would be taken for an option.
    words = [
        [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value] for name, value in options.items()
    ]
    return shlex.join(["detris", "predict", *(word for pair in words for word in pair)])


def find_example(samples: EvaluationSamples) -> tuple[str, str]:
    """Return image file and sentence of one of the first samples, or a placeholder if their images are not files."""
    for index in range(min(_TRIED_SAMPLES, len(samples))):
        row = samples.rows[int(samples.row_index[index])]
        path = row["image"]["path"] or ""
        if row["no_target"] or row["image"]["bytes"] is not None or not Path(path).is_file():
            continue
        with suppress(OSError, ValueError):  # a damaged image
            sample = samples[index]
            example = path, sample.sentence
            if sample.error is None and all(text.isprintable() and _encodable(text) == text for text in example):
                return example
    return _EXAMPLE


def _encodable(text: str) -> str:
    """Return the text with escapes for the characters that the standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
