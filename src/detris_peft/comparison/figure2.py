"""Figure 2 of the paper: image, ground truth and the mask of each arm for some sentences."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..data import BadRowError, decode_mask
from ..visualization import overlay_thumbnail, pyplot, save_figure, wrapped
from .experiment import Experiment
from .results import RunResult, SampleCounts, sample_ids
from .scores import evaluation_samples, read_predictions

_DPI = 120
_FIGURE_WIDTH = 2400  # pixels, up to which panels have their largest side
_SIDES = (150, 210)  # smallest and largest width of a panel in pixels
_COLORS = 256  # of the file, which is then a third as large


@dataclass(frozen=True)
class Panels:
    """What the figure shows of one arm: its scores and predicted masks of one run, by split."""

    samples: Mapping[str, SampleCounts]
    masks: Mapping[str, Mapping[str, str]]


def choose_samples(panels: Mapping[str, Panels], split: str, count: int) -> list[str]:
    """Return the ids of the samples on which arms disagree most: highest variance of IoU, one sample per image.

    Args:
        panels: the arms, scored on the same samples.
        split: the split.
        count: number of samples.
    """
    scored = [arm.samples[split] for arm in panels.values()]
    first = scored[0]
    variance = np.where(first.has_target, np.var([counts.iou for counts in scored], axis=0), -1.0)
    chosen: list[str] = []
    images: set[int] = set()
    for index in np.argsort(-variance, kind="stable"):
        if len(chosen) < count and first.images[index] not in images:
            chosen.append(first.ids[index])
            images.add(first.images[index])
    return chosen


def collect_panels(
    folder: Path, experiment: Experiment, results: Mapping[str, Mapping[int, RunResult]], split: str
) -> tuple[dict[str, Panels], int | None, list[str]]:
    """Return the arms whose predicted masks are in a comparison's folder, for the seed that most of them have.

    Returns:
        The panels by arm, the seed (None without any), and the finished arms that have no masks of this seed.

    Raises:
        ValueError: a file of masks is damaged.
    """
    found: dict[int, dict[str, Panels]] = {seed: {} for seed in experiment.seeds}
    for arm in experiment.arms:
        for seed, result in results.get(arm, {}).items():
            masks = read_predictions(folder, arm, seed)
            if masks is not None and split in masks and split in result.samples:
                found[seed][arm] = Panels(result.samples, masks)
    seed = max(found, key=lambda number: len(found[number]))
    missing = [arm for arm in experiment.arms if results.get(arm) and arm not in found[seed]]
    return found[seed], seed if found[seed] else None, missing


def sample_positions(rows: datasets.Dataset, split: str, ids: Sequence[str]) -> dict[str, int]:
    """Return the positions of the samples of a split by id.

    Args:
        rows: dataset of the split.
        split: the split.
        ids: samples that must exist.

    Raises:
        ValueError: one of them does not.
    """
    samples = evaluation_samples(rows, split)
    positions = {name: i for i, name in enumerate(sample_ids(rows, samples.row_index, samples.sentence_index))}
    unknown = [name for name in ids if name not in positions]
    if unknown:
        raise ValueError(
            f"--samples: expected ids of samples of {split}, such as {next(iter(positions), 'none')}, got "
            f"{unknown[0]}; correct it."
        )
    return positions


def plot_figure2(
    panels: Mapping[str, Panels],
    rows: datasets.Dataset,
    split: str,
    ids: Sequence[str],
    file: str | os.PathLike,
) -> None:
    """Plot image, ground truth and the mask of each arm side by side, one sentence per row.

    Args:
        panels: the arms.
        rows: dataset of the split.
        split: the split.
        ids: samples to show.
        file: image file to write.

    Raises:
        ValueError: a sample does not exist, or its mask is damaged.
    """
    dataset, positions = evaluation_samples(rows, split, skip_bad_rows=True), sample_positions(rows, split, ids)
    samples = {name: dataset[positions[name]] for name in ids}
    plt = pyplot()
    titles = ["image", "ground truth", *panels]
    side = min(max(_FIGURE_WIDTH // len(titles), _SIDES[0]), _SIDES[1])
    # A row is as high as its images, at most square, so that captions are close to landscape images.
    heights = [min(1.0, sample.mask.shape[0] / sample.mask.shape[1]) for sample in samples.values()]
    inch = side / _DPI
    figure, axes = plt.subplots(
        len(ids),
        len(titles),
        figsize=((inch + 0.04) * len(titles), (inch * sum(heights)) + 0.3 * len(ids) + 0.5),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    for line, (name, sample), height in zip(axes, samples.items(), heights, strict=True):
        size = (side, max(1, round(side * height)))
        # The sentence has the width of image and ground truth, which have no other caption.
        cells = [(None, wrapped(sample.sentence, side // 4)), (sample.mask, "")]
        for arm in panels.values():
            counts = arm.samples[split]
            iou = f"IoU {100 * counts.iou[counts.ids.index(name)]:.0f}" if name in counts.ids else ""
            cells.append((_mask(arm.masks[split].get(name), sample.mask.shape, name), iou))
        for axis, (mask, caption) in zip(line, cells, strict=True):
            axis.imshow(_panel(sample.pil_image(), mask, size))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_xlabel(caption, fontsize=8, parse_math=False, labelpad=2)
        line[0].xaxis.label.set(horizontalalignment="left", x=0)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title("\n".join(textwrap.wrap(title, side // 11)), fontsize=9, parse_math=False)
    save_figure(figure, file)
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(_COLORS).save(file, format="PNG", optimize=True)


def _mask(counts: str | None, shape: tuple[int, ...], name: str) -> Any:
    """Return a predicted mask (H, W); None if the arm has none of this sample."""
    if counts is None:
        return None
    try:
        return decode_mask({"size": [*shape], "counts": counts})
    except BadRowError as error:
        raise ValueError(f"predictions: sample {name}: {error}; remove the folder predictions.") from None


def _panel(image: Image.Image, mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return an image with its mask, resized to fit into a panel (width, height) and padded with white."""
    thumbnail = overlay_thumbnail(image, mask, size)
    panel = Image.new("RGB", size, "white")
    panel.paste(thumbnail, ((size[0] - thumbnail.width) // 2, (size[1] - thumbnail.height) // 2))
    return np.asarray(panel)
