"""Mask overlays, training curves, and grids of samples and predictions."""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .image_inputs import to_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .data import EvaluationSamples
    from .modeling import DetrisForReferringSegmentation
    from .processing_detris import DetrisProcessor

MASK_COLOR = (0, 215, 255)  # cyan: rare in photographs, and none of RefShapes' colors


def overlay(
    image: Image.Image, mask: Any, color: tuple[int, int, int] = MASK_COLOR, opacity: float = 0.55
) -> Image.Image:
    """Return the image in RGB with a mask (H, W), filled with a translucent color and outlined.

    Raises:
        ValueError: the mask does not have the size of the image.
    """
    pixels = to_rgb(image).astype(np.float32)
    foreground = np.asarray(mask) > 0
    if foreground.shape != pixels.shape[:2]:
        raise ValueError(
            f"expected a mask of the image's size (H, W) {pixels.shape[:2]}, got {foreground.shape}; resize the mask."
        )
    pixels[foreground] = (1 - opacity) * pixels[foreground] + opacity * np.array(color, np.float32)
    pixels[_border(foreground)] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _border(foreground: np.ndarray) -> np.ndarray:
    """Return the foreground pixels that have a background neighbor."""
    padded = np.pad(foreground, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return foreground & ~interior


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
    left.set(xlabel=unit, ylabel="loss (binary cross-entropy)", ylim=(0, None))
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
    """Plot a grid like Figure 2 of the paper: image with its sentence, ground truth, prediction.

    Invalid rows are skipped. If all selected rows are invalid, no file is written.
    """
    plt = pyplot()
    indices = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)
    chosen = [sample for sample in (samples[index] for index in indices) if sample.error is None]
    if not chosen:
        return
    count = len(chosen)
    was_training = model.training
    model.eval()
    masks = []
    for sample in chosen:  # one by one: with keep_aspect_ratio, each image has its own canvas
        inputs = processor(images=sample.image, text=sample.sentence)
        logits = model(inputs["pixel_values"].to(model.device), inputs["input_ids"].to(model.device)).logits
        masks += processor.post_process_referring_segmentation(logits, inputs["target_sizes"])
    model.train(was_training)
    figure, axes = plt.subplots(3, count, figsize=(2.2 * count, 7), layout="constrained", squeeze=False)
    for column, (sample, mask) in enumerate(zip(chosen, masks, strict=True)):
        panels = (to_rgb(sample.image), overlay(sample.image, sample.mask), overlay(sample.image, mask))
        for row, panel in enumerate(panels):
            axes[row][column].imshow(panel)
            axes[row][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(wrapped(sample.sentence), fontsize=8, parse_math=False)
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
        # Resize before drawing the outline, which would otherwise be too thin to see.
        thumbnail = Image.fromarray(to_rgb(image))
        thumbnail.thumbnail((480, 480), reducing_gap=2.0)
        foreground = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8))
        foreground = foreground.resize(thumbnail.size, Image.Resampling.NEAREST)
        cell.imshow(overlay(thumbnail, foreground, opacity=0.35))  # keeps the object's color visible
        # parse_math is off because sentences may hold dollar signs.
        cell.set_title(f"{caption}\n{wrapped(sentence, 36)}", fontsize=8, parse_math=False)
    save_figure(figure, file)


def save_figure(figure: Any, file: str | os.PathLike | IO[bytes]) -> None:
    """Write a figure as PNG and close it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # missing characters are drawn as boxes
        figure.savefig(file, dpi=120, format="png")
    pyplot().close(figure)


def wrapped(sentence: str, width: int = 24) -> str:
    """Return a sentence in at most four lines."""
    return "\n".join(textwrap.wrap(sentence, width, max_lines=4, placeholder=" ..."))
