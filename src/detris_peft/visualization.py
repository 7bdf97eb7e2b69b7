"""Mask overlays, training curves, and grids of samples and predictions."""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image

from .eval_mode import eval_mode
from .image_inputs import to_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .data import EvaluationSamples
    from .modeling import DetrisForReferringSegmentation
    from .processing_detris import DetrisProcessor

MASK_COLOR = (255, 214, 0)  # of the bright line: yellow is bright, and differs from the gray surround in color too
_SURROUND = 0.5  # brightness of the surround, relative to the image
_SURROUND_COLOR = 0.3  # share of its colors that the surround keeps
_PANEL = (360, 360)  # largest width and height of an image in a grid, in pixels
_LINE_WIDTH = 0.005  # of each line of the outline, relative to the shorter side of the image


def overlay(
    image: Image.Image, mask: Any, color: tuple[int, int, int] = MASK_COLOR, opacity: float = 0.0
) -> Image.Image:
    """Return the image in RGB with a mask (H, W): a dim, gray surround, and a two-tone outline around the object.

    The outline is outside of the object, whose pixels keep their color: a black line, then a bright one, which is
    therefore visible on any image. Where the edge of the image cuts the object, the lines follow that edge.

    Args:
        image: the image.
        mask: foreground > 0; may be empty.
        color: of the bright line, and of the tint.
        opacity: of a tint of the object, from 0 to 1.

    Raises:
        ValueError: the mask does not have the size of the image.
    """
    pixels = to_rgb(image)
    foreground = (np.asarray(mask) > 0).astype(np.uint8)
    if foreground.shape != pixels.shape[:2]:
        raise ValueError(
            f"expected a mask of the image's size (H, W) {pixels.shape[:2]}, got {foreground.shape}; resize the mask."
        )
    gray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    drawn = cv2.addWeighted(pixels, _SURROUND * _SURROUND_COLOR, gray, _SURROUND * (1 - _SURROUND_COLOR), 0)
    if opacity:
        pixels = cv2.addWeighted(pixels, 1 - opacity, np.full_like(pixels, color), opacity, 0)
    cv2.copyTo(pixels, foreground, drawn)
    if foreground.any():
        dark, bright = _outline(foreground)
        drawn[dark], drawn[bright] = 0, color
    return Image.fromarray(drawn)


def overlay_thumbnail(image: Image.Image, mask: Any, size: tuple[int, int]) -> Image.Image:
    """Return the overlay of an image and its mask, both resized to fit into a size (width, height).

    Use it where an overlay would be shown smaller than the image: the outline keeps its width, and a small object does
    not disappear. Without a mask (None), the resized image is returned.
    """
    pixels = Image.fromarray(to_rgb(image))
    scale = min(size[0] / pixels.width, size[1] / pixels.height)
    fitted = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    thumbnail = pixels.resize(fitted, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if mask is None:
        return thumbnail
    foreground = (np.asarray(mask) > 0).astype(np.float32)
    share = cv2.resize(foreground, fitted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    kept = share >= 0.5
    return overlay(thumbnail, kept if kept.any() else share > 0)


def _outline(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of the dark and of the bright line (H, W) around a mask of 0 and 1 that is not empty."""
    width = max(1, round(_LINE_WIDTH * min(foreground.shape)))
    distance = cv2.distanceTransform(1 - foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    dark, bright = (distance > 0) & (distance <= width), (distance > width) & (distance <= 2 * width)
    # Along the edge of the image, the lines cover the object, but only where it continues further inside.
    edge = np.zeros_like(foreground)
    edge[width:-width, width:-width] = 1
    edge[2 * width : -2 * width, 2 * width : -2 * width] = 2
    inside = cv2.dilate(foreground * (edge == 2), np.ones((4 * width + 1, 4 * width + 1), np.uint8))
    cut = (foreground & inside).astype(bool)
    return dark | (cut & (edge == 1)), bright | (cut & (edge == 0))


def pyplot() -> Any:
    """Return matplotlib's pyplot, which then needs no display.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "plots: expected matplotlib to be installed, found no such package; run: pip install matplotlib."
        ) from None
    matplotlib.use("Agg")  # renders to files without a display
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot_curves(history: Sequence[dict[str, float]], file: str | os.PathLike) -> None:
    """Plot loss and metrics over epochs, or over optimizer steps if there are several evaluations per epoch.

    Args:
        history: one record per evaluation, as `detris_peft.training.train` returns them.
        file: image file to write.
    """
    plt = pyplot()
    unit = "epoch" if len({record["epoch"] for record in history}) == len(history) else "step"
    positions = [record[unit] for record in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(positions, [r["train_loss"] for r in history], marker="o", markersize=3, label="train")
    left.plot(positions, [r["loss"] for r in history], marker="o", markersize=3, label="val")
    left.set(xlabel=unit, ylabel="loss", ylim=(0, None))
    for name, style in (("mIoU", "-"), ("oIoU", "--"), ("Pr@0.5", ":"), ("Pr@0.7", ":"), ("Pr@0.9", ":")):
        right.plot(positions, [100 * r[name] for r in history], style, marker="o", markersize=3, label=name)
    right.set(xlabel=unit, ylabel="val, %", ylim=(0, 100))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save_figure(figure, file)


@torch.no_grad()
def plot_predictions(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    samples: EvaluationSamples,
    file: str | Path | IO[bytes],
    count: int = 6,
) -> None:
    """Plot a grid like Figure 2 of the paper: image with its sentence, ground truth, prediction with its IoU.

    Invalid rows are skipped, and no-target pairs are not shown. If all selected rows are invalid, no file is written.
    """
    plt = pyplot()
    indices = np.linspace(0, samples.first_pair - 1, min(count, samples.first_pair)).astype(int)
    chosen = [sample for sample in (samples[index] for index in indices) if sample.error is None]
    if not chosen:
        return
    count = len(chosen)
    masks = []
    with eval_mode(model):
        for sample in chosen:  # one by one: with keep_aspect_ratio, each image has its own canvas
            inputs = processor(images=sample.image, text=sample.sentence)
            logits = model(inputs["pixel_values"].to(model.device), inputs["input_ids"].to(model.device)).logits
            masks += processor.post_process_referring_segmentation(logits, inputs["target_sizes"])
    figure, axes = plt.subplots(3, count, figsize=(2.2 * count, 7), layout="constrained", squeeze=False)
    for column, (sample, mask) in enumerate(zip(chosen, masks, strict=True)):
        for row, shown in enumerate((None, sample.mask, mask)):
            axes[row][column].imshow(overlay_thumbnail(sample.pil_image(), shown, _PANEL))
            axes[row][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(wrapped(sample.sentence), fontsize=8, parse_math=False)
        axes[2][column].set_xlabel(describe_iou(mask, sample.mask), fontsize=8)
    for row, name in enumerate(("image", "ground truth", "prediction")):
        axes[row][0].set_ylabel(name)
    save_figure(figure, file)


def plot_samples(
    samples: Sequence[tuple[Image.Image, Any, str, str]], file: str | os.PathLike, columns: int = 4
) -> None:
    """Plot a grid of (image, mask (H, W), caption, sentence): the image with its mask under caption and sentence."""
    plt = pyplot()
    rows = max(math.ceil(len(samples) / columns), 1)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.1 * rows), layout="constrained", squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for cell, (image, mask, caption, sentence) in zip(axes.flat, samples, strict=False):
        cell.imshow(overlay_thumbnail(image, mask, _PANEL))
        # parse_math is off because sentences may hold dollar signs.
        cell.set_title(f"{caption}\n{wrapped(sentence, 36)}", fontsize=8, parse_math=False)
    save_figure(figure, file)


def describe_iou(prediction: Any, mask: Any) -> str:
    """Return the caption of a predicted mask: its IoU with the true one in percent, for example "IoU 63".

    Raises:
        ValueError: the shapes differ.
    """
    from .metrics import intersection_and_union  # its dependencies take a second to import, and prediction needs none

    intersection, union = intersection_and_union(prediction, mask)
    return f"IoU {100 * intersection / union:.0f}" if union else "both empty"


def save_figure(figure: Any, file: str | os.PathLike | IO[bytes]) -> None:
    """Write a figure as PNG and close it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # missing characters are drawn as boxes
        figure.savefig(file, dpi=120, format="png")
    pyplot().close(figure)


def wrapped(sentence: str, width: int = 24) -> str:
    """Return a sentence in at most four lines."""
    return "\n".join(textwrap.wrap(sentence, width, max_lines=4, placeholder=" ..."))
