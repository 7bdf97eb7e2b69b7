"""Preview images of datasets: samples with their masks and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .output import write_output

if TYPE_CHECKING:
    import datasets

_SAMPLES = 12


def check_preview() -> None:
    """Raise a ValueError if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError("--preview: expected matplotlib, found no such package; run: pip install matplotlib.")


def write_preview(splits: Sequence[datasets.Dataset], file: str, seed: int) -> str:
    """Write a grid of random samples of the splits as PNG; return a message."""
    from ...visualization import plot_samples

    samples = draw_samples(splits, _SAMPLES, seed)
    if not samples:
        return "no valid rows: wrote no preview"
    with write_output(file) as temporary:
        plot_samples(samples, temporary)
    return f"wrote {file}"


def draw_samples(splits: Sequence[datasets.Dataset], count: int, seed: int) -> list[tuple[Any, Any, str, str]]:
    """Draw random valid rows, about equally many per split, as (image, mask, caption, sentence)."""
    import datasets
    import numpy as np

    from ...data import decode_row

    rng = np.random.default_rng(seed)
    samples = []
    for split_index, rows in enumerate(splits):
        rows = rows.cast_column("image", datasets.Image(decode=False))
        target = len(samples) + (count - len(samples)) // (len(splits) - split_index)
        for index in rng.permutation(len(rows))[: 20 * count].tolist():
            if len(samples) == target:
                break
            row: dict[str, Any] = rows[index]
            try:
                image, mask = decode_row(row)
            except (OSError, ValueError):  # already reported
                continue
            caption = f"{row['split']}, reference {row['ref_id']}{', no target' * row['no_target']}"
            samples.append((image, mask, caption, rng.choice(row["sentences"])))
    return samples
