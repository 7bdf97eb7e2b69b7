"""Figure of errors: masks of every arm where one arm finds the wrong object or none, or an inaccurate boundary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from ..visualization import save_figure, wrapped
from .error_analysis import ERROR_KINDS, INACCURATE_BOUNDARY, WRONG_OBJECT, error_kinds
from .panels import ArmMasks, draw_grid, iou_caption, panel, panel_side, predicted_mask, read_samples
from .results import SampleCounts

SAMPLES_PER_KIND = 3


def choose_errors(counts: SampleCounts) -> dict[str, list[str]]:
    """Return ids of samples with the wrong object and of samples with an inaccurate boundary, by kind.

    They are evenly spaced over the samples of that kind, one per image, so that they are neither the best nor the
    worst ones.
    """
    chosen = {}
    for kind in (WRONG_OBJECT, INACCURATE_BOUNDARY):
        indices = np.flatnonzero((error_kinds(counts) == kind) & counts.has_target)
        indices = indices[np.sort(np.unique(np.array(counts.images)[indices], return_index=True)[1])]
        places = np.linspace(0, len(indices) - 1, min(SAMPLES_PER_KIND, len(indices))).astype(int)
        chosen[ERROR_KINDS[kind]] = [counts.ids[index] for index in indices[places]]
    return chosen


def plot_errors(
    arms: Mapping[str, ArmMasks],
    rows: datasets.Dataset,
    split: str,
    chosen: Mapping[str, Sequence[str]],
    file: str | os.PathLike,
) -> None:
    """Plot the predicted mask and the target's contour: one row per arm, one column per sample.

    Args:
        arms: the arms.
        rows: dataset of the split.
        split: the split.
        chosen: ids of the samples, by the kind of error they show, see `choose_errors`.
        file: image file to write.

    Raises:
        ValueError: a sample does not exist, or its mask is damaged.
    """
    kinds = {name: kind for kind, ids in chosen.items() for name in ids}
    samples = read_samples(rows, split, [*kinds])
    side = panel_side(len(samples))
    height = max(min(1.0, sample.mask.shape[0] / sample.mask.shape[1]) for sample in samples.values())
    size = (side, max(1, round(side * height)))
    titles = [f"{kinds[name]}:\n{wrapped(sample.sentence, side // 8)}" for name, sample in samples.items()]
    cells = []
    for arm in arms.values():
        line = []
        for name, sample in samples.items():
            mask = predicted_mask(arm.masks[split], name, sample.mask.shape)
            pixels = panel(sample.pil_image(), mask, size, target=sample.mask)
            line.append((pixels, iou_caption(arm.samples[split], name)))
        cells.append(line)
    figure, axes = draw_grid(cells, titles, [height] * len(cells), side)
    for name, line in zip(arms, axes, strict=True):
        line[0].set_ylabel(name, fontsize=9, parse_math=False)
    save_figure(figure, file)  # not with few colors, as Figure 2: the thin contours would change theirs
