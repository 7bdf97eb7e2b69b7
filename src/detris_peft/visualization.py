"""Images of results: an overlay, training curves, and a grid of predictions."""

from __future__ import annotations

import math
import os
import warnings
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .processing_detris import to_rgb

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
    """The image in RGB with a mask (H, W) laid over it: tinted inside, a full-colored line around."""
    pixels = to_rgb(image).astype(np.float32)
    inside = np.asarray(mask) > 0
    if inside.shape != pixels.shape[:2]:
        raise ValueError(f"The mask is {inside.shape}, the image {pixels.shape[:2]}: give a mask of its size.")
    pixels[inside] = (1 - opacity) * pixels[inside] + opacity * np.array(color, np.float32)
    pixels[_border(inside)] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _border(inside: np.ndarray) -> np.ndarray:
    """Foreground pixels with a background neighbor."""
    padded = np.pad(inside, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~interior


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("Curves and grids need matplotlib: pip install 'detris-peft[train]'.") from None
    matplotlib.use("Agg")  # files only: works without a screen
    from matplotlib import pyplot

    return pyplot


def plot_curves(history: Sequence[dict[str, float]], file: str | os.PathLike) -> None:
    """Loss, and metrics by name, over epochs."""
    plt = _pyplot()
    epochs = [record["epoch"] for record in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(epochs, [r["train_loss"] for r in history], marker="o", markersize=3, label="train")
    left.plot(epochs, [r["loss"] for r in history], marker="o", markersize=3, label="val")
    left.set(xlabel="epoch", ylabel="loss (binary cross-entropy)", ylim=(0, None))
    for name, style in (("mIoU", "-"), ("oIoU", "--"), ("Pr@0.5", ":"), ("Pr@0.7", ":"), ("Pr@0.9", ":")):
        right.plot(epochs, [100 * r[name] for r in history], style, marker="o", markersize=3, label=name)
    right.set(xlabel="epoch", ylabel="val, %", ylim=(0, 100))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


@torch.no_grad()
def plot_predictions(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    samples: EvaluationSamples,
    file: str | Path | IO[bytes],
    count: int = 6,
) -> None:
    """A grid in the manner of the paper's Figure 2: image with its sentence, ground truth, prediction.

    Bad rows are left out; where all that would be shown are bad, no image is made.
    """
    plt = _pyplot()
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)
    chosen = [sample for sample in (samples[i] for i in places) if sample.bad is None]
    if not chosen:
        return
    count = len(chosen)
    inputs = processor(images=[s.image for s in chosen], text=[s.sentence for s in chosen])
    was_training = model.training
    model.eval()
    logits = model(inputs["pixel_values"].to(model.device), inputs["input_ids"].to(model.device)).logits
    model.train(was_training)
    masks = processor.post_process_referring_segmentation(logits, inputs["target_sizes"])
    figure, axes = plt.subplots(3, count, figsize=(2.2 * count, 7), layout="constrained", squeeze=False)
    for column, (sample, mask) in enumerate(zip(chosen, masks, strict=True)):
        panels = (to_rgb(sample.image), overlay(sample.image, sample.mask), overlay(sample.image, mask))
        for row, panel in enumerate(panels):
            axes[row][column].imshow(panel)
            axes[row][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(_wrapped(sample.sentence), fontsize=8, parse_math=False)
    for row, name in enumerate(("image", "ground truth", "prediction")):
        axes[row][0].set_ylabel(name)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_samples(
    samples: Sequence[tuple[Image.Image, Any, str, str]], file: str | os.PathLike, columns: int = 4
) -> None:
    """A grid of images with their masks (H, W) laid over them; above each, a caption and below that its sentence."""
    plt = _pyplot()
    lines = max(math.ceil(len(samples) / columns), 1)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3 * columns, 3.1 * lines), layout="constrained", squeeze=False
    )
    for place in axes.flat:
        place.axis("off")
    for place, (image, mask, caption, sentence) in zip(axes.flat, samples, strict=False):
        # Shrunk before the line is drawn, which would be too thin to see otherwise.
        pixels = Image.fromarray(to_rgb(image))
        pixels.thumbnail((480, 480), reducing_gap=2.0)
        foreground = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8))
        foreground = foreground.resize(pixels.size, Image.Resampling.NEAREST)
        place.imshow(overlay(pixels, foreground, opacity=0.35))  # the object's own color stays to be judged
        # Dollar signs in a sentence are no formula.
        place.set_title(f"{caption}\n{_wrapped(sentence, 36)}", fontsize=8, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # other scripts come out as boxes
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


def _wrapped(sentence: str, width: int = 24) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(sentence, width))
