"""Agreement of the masks in bf16 and fp16 with those in float32, and the mIoU of each, on a split of a dataset.

    python benchmarks/precision_agreement.py --checkpoint runs/quickstart/best --dataset refshapes --data_root data

The first sentence of each reference is predicted in each precision by `DetrisPredictor`, as by `detris predict`.
Printed per precision: `mIoU` and `oIoU` against the labels; `IoU to fp32`, the mean IoU between the masks and those of
float32 (1 for two empty masks), and the smallest one; `pixels`, the share of all pixels whose mask differs, in %.
fp16 needs a GPU. Results depend on the checkpoint and the images, not on the speed of the machine.
"""

import argparse
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from detris_peft import DetrisPredictor
from detris_peft.data import DataSource, decode_row
from detris_peft.metrics import ReferringSegmentationMetrics

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", default="refshapes")
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--limit", type=int, help="number of references; default: all")
    arguments = parser.parse_args()
    rows: Any = DataSource(dataset=arguments.dataset, data_root=arguments.data_root).load(arguments.split)
    rows = rows.select(range(min(len(rows), arguments.limit or len(rows))))
    print(
        f"{arguments.checkpoint} on {len(rows)} references of {arguments.dataset} {arguments.split}; "
        f"{device_name(arguments.device)}, torch {torch.__version__}"
    )
    print(f"{'':6} {'mIoU':>7} {'oIoU':>7} {'IoU to fp32':>12} {'smallest':>9} {'pixels':>8}")
    expected: list[np.ndarray] = []
    for precision, dtype in DTYPES.items():
        if precision == "fp16" and arguments.device == "cpu":
            continue
        masks, scores = predict(arguments, rows, dtype)
        expected = expected or masks
        overlaps = [iou(mask, other) for mask, other in zip(masks, expected, strict=True)]
        differing = sum(int((mask != other).sum()) for mask, other in zip(masks, expected, strict=True))
        share = differing / sum(mask.size for mask in masks)
        print(
            f"{precision:6} {100 * scores['mIoU']:7.2f} {100 * scores['oIoU']:7.2f} {np.mean(overlaps):12.4f} "
            f"{min(overlaps):9.4f} {100 * share:8.3f}",
            flush=True,
        )


def predict(arguments: argparse.Namespace, rows: Any, dtype: torch.dtype) -> tuple[list[np.ndarray], dict[str, float]]:
    """Return the masks (H, W) of all rows in one precision, and their scores."""
    predictor = DetrisPredictor.from_pretrained(
        arguments.checkpoint, device=arguments.device, dtype=dtype, batch_size=arguments.batch_size
    )
    metrics, masks = ReferringSegmentationMetrics(), []
    references: list[np.ndarray] = []

    def pairs() -> Iterator[tuple[Any, str]]:
        for row in rows:
            image, mask = decode_row(row)
            references.append(mask)
            yield image, row["sentences"][0]

    for prediction in predictor.stream(pairs()):
        masks.append(prediction.mask)
        metrics.add(prediction=prediction.mask, reference=references[len(masks) - 1])
    return masks, metrics.compute()


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two masks; that of two empty ones is 1."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


def device_name(device: str) -> str:
    """Return the name of the GPU or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
