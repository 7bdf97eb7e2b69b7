"""Figure 2 of the paper: image, ground truth and the mask of each arm for some sentences."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
from PIL import Image

from ..visualization import save_figure, wrapped
from .panels import ArmMasks, draw_grid, iou_caption, panel, panel_side, predicted_mask, read_samples

_COLORS = 256  # of the file, which is then a third as large


def choose_samples(arms: Mapping[str, ArmMasks], split: str, count: int) -> list[str]:
    """Return the ids of the samples on which arms disagree most: highest variance of IoU, one sample per image.

    Args:
        arms: the arms, scored on the same samples.
        split: the split.
        count: number of samples.
    """
    scored = [arm.samples[split] for arm in arms.values()]
    first = scored[0]
    variance = np.where(first.has_target, np.var([counts.iou for counts in scored], axis=0), -1.0)
    chosen: list[str] = []
    images: set[int] = set()
    for index in np.argsort(-variance, kind="stable"):
        if len(chosen) < count and first.images[index] not in images:
            chosen.append(first.ids[index])
            images.add(first.images[index])
    return chosen


def plot_figure2(
    arms: Mapping[str, ArmMasks],
    rows: datasets.Dataset,
    split: str,
    ids: Sequence[str],
    file: str | os.PathLike,
) -> None:
    """Plot image, ground truth and the mask of each arm side by side, one sentence per row.

    Args:
        arms: the arms.
        rows: dataset of the split.
        split: the split.
        ids: samples to show.
        file: image file to write.

    Raises:
        ValueError: a sample does not exist, or its mask is damaged.
    """
    samples = read_samples(rows, split, ids)
    titles = ["image", "ground truth", *arms]
    side = panel_side(len(titles))
    # A row is as high as its images, at most square, so that captions are close to landscape images.
    heights = [min(1.0, sample.mask.shape[0] / sample.mask.shape[1]) for sample in samples.values()]
    cells = []
    for (name, sample), height in zip(samples.items(), heights, strict=True):
        size = (side, max(1, round(side * height)))
        # The sentence has the width of image and ground truth, which have no other caption.
        line = [(None, wrapped(sample.sentence, side // 4)), (sample.mask, "")]
        line += [
            (predicted_mask(arm.masks[split], name, sample.mask.shape), iou_caption(arm.samples[split], name))
            for arm in arms.values()
        ]
        cells.append([(panel(sample.pil_image(), mask, size), caption) for mask, caption in line])
    figure, axes = draw_grid(cells, ["\n".join(textwrap.wrap(title, side // 11)) for title in titles], heights, side)
    for line in axes:
        line[0].xaxis.label.set(horizontalalignment="left", x=0)
    save_figure(figure, file)
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(_COLORS).save(file, format="PNG", optimize=True)
