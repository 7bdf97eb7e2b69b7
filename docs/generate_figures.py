"""Write a figure of predictions for README.md: image and sentence above, the predicted mask with its IoU below.

    python docs/generate_figures.py --checkpoint quickstart/run/best --data_root quickstart/data --dataset refshapes \
        --split testA --sentences all --output docs/images/refshapes.png

The samples are not chosen by hand: all samples of the split are sorted by IoU, and those at the given percentiles are
shown. docs/images/README.md has the commands of the figures in the repository, and the licenses of the photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from detris_peft.data import EvaluationSamples
from detris_peft.data.sources import DataSource
from detris_peft.metrics import intersection_and_union
from detris_peft.prediction import DetrisPredictor
from detris_peft.visualization import describe_iou, overlay_thumbnail, pyplot, save_figure, wrapped

_WIDTH = 2.2  # of a column, in inches of 120 pixels
_CELL = (240, 240)  # largest width and height of an image, in pixels
_COLORS = 256  # of the palette: the file is a third of one in full color


def choose(ious: Sequence[float], images: Sequence[int], percentiles: Sequence[float]) -> list[int]:
    """Return the position of a sample at each percentile of IoU, each of another image.

    Args:
        ious: IoU of each sample.
        images: id of the image of each sample.
        percentiles: from 0 (the worst sample) to 100 (the best one).
    """
    order = [int(i) for i in np.argsort(ious, kind="stable")]
    chosen: list[int] = []
    for percentile in percentiles:
        wanted = percentile / 100 * (len(order) - 1)
        free = [rank for rank, i in enumerate(order) if images[i] not in {images[j] for j in chosen}]
        chosen.append(order[min(free, key=lambda rank: abs(rank - wanted))])
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict all samples of a split, and draw those at the percentiles."""
    parser = argparse.ArgumentParser(description="Write a figure of predictions.")
    parser.add_argument("--checkpoint", required=True, help="folder of a trained checkpoint")
    parser.add_argument("--data_root", default="data", help="folder that holds the dataset")
    parser.add_argument("--dataset", required=True, help="as for detris evaluate")
    parser.add_argument("--split", default="val", help="split of the dataset")
    parser.add_argument("--sentences", default="first", help="first or all sentences of each object")
    parser.add_argument("--percentiles", type=float, nargs="+", default=[90, 70, 50, 10], help="of IoU, per column")
    parser.add_argument("--output", required=True, type=Path, help="PNG file")
    options = parser.parse_args(arguments)

    rows = DataSource(options.dataset, options.data_root).load(options.split)
    samples = EvaluationSamples(rows, options.sentences)  # type: ignore[arg-type]  rows are not streamed
    predictor = DetrisPredictor.from_pretrained(options.checkpoint)
    pairs = ((samples[i].image, samples[i].sentence) for i in range(len(samples)))
    ious = []
    for i, prediction in enumerate(predictor.stream(pairs)):
        intersection, union = intersection_and_union(prediction.mask, samples[i].mask)
        ious.append(intersection / union if union else 1.0)
    images = np.array(rows["image_id"])[samples.row_index].tolist()
    chosen = choose(ious, images, options.percentiles)

    plt = pyplot()
    height = max(samples[i].image.height / samples[i].image.width for i in chosen)
    size = (_WIDTH * len(chosen), 2 * _WIDTH * height + 0.5)
    figure, axes = plt.subplots(2, len(chosen), figsize=size, layout="constrained", squeeze=False)
    for column, i in enumerate(chosen):
        sample, prediction = samples[i], predictor(samples[i].image, samples[i].sentence)
        for row, mask in enumerate((None, prediction.mask)):
            axes[row][column].imshow(overlay_thumbnail(sample.image, mask, _CELL))
            axes[row][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(wrapped(sample.sentence), fontsize=10, parse_math=False)
        axes[1][column].set_xlabel(f"score {prediction.score:.2f}, {describe_iou(prediction.mask, sample.mask)}")
        print(f"percentile {options.percentiles[column]:g}: image {images[i]}, {sample.sentence!r}, IoU {ious[i]:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    save_figure(figure, drawn)
    Image.open(drawn).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(options.output, optimize=True)
    print(f"{options.split}: {len(ious)} samples, mIoU {100 * np.mean(ious):.2f}; wrote {options.output}")


if __name__ == "__main__":
    main()
