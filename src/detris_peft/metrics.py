"""mIoU, oIoU and precision at thresholds, from each sample's intersection and union.

Masks are reduced to two integers a sample as they come in. That is all that must be kept, or gathered from other
processes, and it is exact. mIoU and oIoU are always given together: one has often been mistaken for the other.
"""

import datasets
import evaluate
import numpy as np
import torch

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRIC_NAMES = ("mIoU", "oIoU", *(f"Pr@{t}" for t in PRECISION_THRESHOLDS))


class ReferringSegmentationMetrics(evaluate.Metric):
    """mIoU, oIoU and Pr@0.5 … Pr@0.9 of binary masks.

    `add` and `add_batch` take masks of any size; across processes, gather `intersection_and_union` and hand it to
    `add_counts`. `compute` gives the result of all samples since the last `compute`:

    - mIoU: mean over samples of I / (U + 1e-6); a sample with both masks empty counts as 0.
    - oIoU: sum of I over sum of U; large objects weigh more.
    - Pr@t: share of samples whose IoU is above t.

    Everything stays in memory: no cache file or lock is written, so any number of processes may run side by side.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # the base class would make a cache folder in the home directory, which is never used in memory

    def _info(self) -> evaluate.MetricInfo:
        counts = {"intersections": datasets.Value("int64"), "unions": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Mean and overall IoU and precision at thresholds for referring image segmentation.",
            citation="",
            features=datasets.Features(counts),
        )

    def add(self, *, prediction, reference):
        """Adds one sample: two masks of the same shape, as in `intersection_and_union`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references):
        """Adds B samples: two sequences of B masks; shapes may differ between samples."""
        if len(predictions) != len(references):
            raise ValueError(
                f"got {len(predictions)} predictions and {len(references)} references: pass as many of each"
            )
        counts = [intersection_and_union(*pair) for pair in zip(predictions, references, strict=True)]
        self.add_counts([intersection for intersection, _ in counts], [union for _, union in counts])

    def add_counts(self, intersections, unions):
        """Adds B samples by their pixel counts: two sequences, arrays or tensors of B integers."""
        intersections, unions = (np.asarray(_to_array(counts), dtype=np.int64) for counts in (intersections, unions))
        if intersections.shape != unions.shape or intersections.ndim != 1:
            raise ValueError(f"intersections are {intersections.shape} and unions {unions.shape}: pass (B,) of each")
        super().add_batch(intersections=intersections, unions=unions)

    def compute(self, *, predictions=None, references=None) -> dict[str, float]:
        """The metrics by name, each in [0, 1]; starts anew afterwards.

        Raises:
            ValueError: no sample was added.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if len(self) == 0:
            raise ValueError("no sample to compute metrics from: call add, add_batch or add_counts first")
        result = super().compute()
        assert result is not None  # None only on the helper processes of evaluate's own file-based gathering
        return result

    def _compute(self, *, intersections, unions) -> dict[str, float]:
        intersections, unions = np.asarray(intersections), np.asarray(unions)
        iou = intersections / (unions + 1e-6)
        metrics = (float(iou.mean()), float(intersections.sum() / max(unions.sum(), 1)))
        precision = (float((iou > t).mean()) for t in PRECISION_THRESHOLDS)
        return dict(zip(METRIC_NAMES, [*metrics, *precision], strict=True))


def intersection_and_union(prediction, reference) -> tuple[int, int]:
    """Pixels in both masks, and pixels in either.

    Args:
        prediction: array or tensor, any shape; bool or integer, foreground > 0. Floats must already be 0 or 1.
        reference: of the same shape; foreground > 0, any dtype.
    """
    predicted, actual = _to_array(prediction), _to_array(reference)
    if predicted.shape != actual.shape:
        raise ValueError(f"prediction is {predicted.shape} and reference {actual.shape}: bring them to the same size")
    if np.issubdtype(predicted.dtype, np.floating) and not np.isin(predicted, (0, 1)).all():
        raise ValueError("prediction holds values between 0 and 1 or beyond: threshold probabilities before counting")
    predicted, actual = predicted > 0, actual > 0
    return int(np.count_nonzero(predicted & actual)), int(np.count_nonzero(predicted | actual))


def format_metrics(metrics: dict[str, float]) -> str:
    """One line, in per cent, each number under its name: "mIoU 61.20  oIoU 60.08  Pr@0.5 70.00 …"."""
    return "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())


def _to_array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
