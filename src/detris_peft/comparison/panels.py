"""Predicted masks of a comparison's arms, and grids of images that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
from PIL import Image

from ..data import BadRowError, Sample, decode_mask
from ..visualization import overlay_thumbnail, pyplot
from .experiment import Experiment
from .results import RunResult, SampleCounts, sample_ids
from .scores import evaluation_samples, read_predictions

CONTOUR_COLOR = (0, 240, 255)  # of the target: cyan differs from the yellow line around the predicted mask
_DPI = 120
_FIGURE_WIDTH = 2400  # pixels, up to which panels have their largest side
_SIDES = (150, 210)  # smallest and largest width of a panel in pixels


@dataclass(frozen=True)
class ArmMasks:
    """What figures show of one arm: its scores and predicted masks of one run, by split."""

    samples: Mapping[str, SampleCounts]
    masks: Mapping[str, Mapping[str, str]]


def collect_masks(
    folder: Path, experiment: Experiment, results: Mapping[str, Mapping[int, RunResult]], split: str
) -> tuple[dict[str, ArmMasks], int | None, list[str]]:
    """Return the arms whose predicted masks are in a comparison's folder, for the seed that most of them have.

    Returns:
        The masks by arm, the seed (None without any), and the finished arms that have no masks of this seed.

    Raises:
        ValueError: a file of masks is damaged.
    """
    found: dict[int, dict[str, ArmMasks]] = {seed: {} for seed in experiment.seeds}
    for arm in experiment.arms:
        for seed, result in results.get(arm, {}).items():
            masks = read_predictions(folder, arm, seed)
            if masks is not None and split in masks and split in result.samples:
                found[seed][arm] = ArmMasks(result.samples, masks)
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


def read_samples(rows: datasets.Dataset, split: str, ids: Sequence[str]) -> dict[str, Sample]:
    """Return the samples with these ids, with their images.

    Raises:
        ValueError: one of them does not exist.
    """
    dataset, positions = evaluation_samples(rows, split, skip_bad_rows=True), sample_positions(rows, split, ids)
    return {name: dataset[positions[name]] for name in ids}


def predicted_mask(masks: Mapping[str, str], name: str, shape: tuple[int, ...]) -> Any:
    """Return the predicted mask (H, W) of a sample; None if there is none.

    Raises:
        ValueError: the mask is damaged.
    """
    if name not in masks:
        return None
    try:
        return decode_mask({"size": [*shape], "counts": masks[name]})
    except BadRowError as error:
        raise ValueError(f"predictions: sample {name}: {error}; remove the folder predictions.") from None


def iou_caption(counts: SampleCounts, name: str) -> str:
    """Return the IoU of a sample in percent as a caption; an empty text if it was not scored."""
    return f"IoU {100 * counts.iou[counts.ids.index(name)]:.0f}" if name in counts.ids else ""


def panel(image: Image.Image, mask: Any, size: tuple[int, int], target: Any = None) -> np.ndarray:
    """Return an image with its mask, resized to fit into a panel (width, height) and padded with white.

    Args:
        image: the image.
        mask: (H, W) mask; None: only the image.
        size: width and height of the panel in pixels.
        target: (H, W) mask whose contour is drawn on top.
    """
    thumbnail = overlay_thumbnail(image, mask, size)
    if target is not None:
        thumbnail = _with_contour(thumbnail, target)
    padded = Image.new("RGB", size, "white")
    padded.paste(thumbnail, ((size[0] - thumbnail.width) // 2, (size[1] - thumbnail.height) // 2))
    return np.asarray(padded)


def panel_side(columns: int) -> int:
    """Return the width of each panel of a grid in pixels."""
    return min(max(_FIGURE_WIDTH // columns, _SIDES[0]), _SIDES[1])


def draw_grid(
    cells: Sequence[Sequence[tuple[np.ndarray, str]]], titles: Sequence[str], heights: Sequence[float], side: int
) -> tuple[Any, Any]:
    """Draw rows of panels with captions under them, and return the figure and its axes (rows, columns).

    Args:
        cells: panel and caption of each cell, by row.
        titles: titles of the columns.
        heights: height of the panels of each row, relative to their width.
        side: width of the panels in pixels.
    """
    inch, lines = side / _DPI, max(title.count("\n") for title in titles)
    figure, axes = pyplot().subplots(
        len(cells),
        len(titles),
        figsize=((inch + 0.04) * len(titles), (inch * sum(heights)) + 0.3 * len(cells) + 0.5 + 0.1 * lines),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    for row, line in zip(axes, cells, strict=True):
        for axis, (pixels, caption) in zip(row, line, strict=True):
            axis.imshow(pixels)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_xlabel(caption, fontsize=8, parse_math=False, labelpad=2)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, parse_math=False)
    return figure, axes


def _with_contour(thumbnail: Image.Image, target: Any) -> Image.Image:
    """Return a thumbnail with the contour of a mask (H, W) of the original image."""
    foreground = (np.asarray(target) > 0).astype(np.uint8)
    contours, _ = cv2.findContours(foreground, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = np.array(thumbnail.size) / foreground.shape[::-1]
    pixels = np.array(thumbnail)
    # Centers of pixels are at half-integers.
    lines = [np.round((contour + 0.5) * scale - 0.5).astype(np.int32) for contour in contours]
    cv2.polylines(pixels, lines, isClosed=True, color=CONTOUR_COLOR, thickness=1)
    return Image.fromarray(pixels)
