"""mIoU, oIoU and precision at thresholds, and gRefCOCO's metrics of sentences without target, from pixel counts.

Masks are reduced to three integers a sample as they come in. That is all that must be kept, or gathered from other
processes, and it is exact. mIoU and oIoU are always given together: one has often been mistaken for the other.
"""

import datasets
import evaluate
import numpy as np
import torch

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRIC_NAMES = ("mIoU", "oIoU", *(f"Pr@{t}" for t in PRECISION_THRESHOLDS))
NO_TARGET_METRIC_NAMES = ("gIoU", "cIoU", "N-acc", "T-acc")
# A smaller prediction says "no target". DETRIS has no output of its own for that; the authors of gRefCOCO clear masks
# of less than 50 pixels of models that have none (Liu et al., 2023).
NO_TARGET_PIXELS = 50
# Stands for the size of a prediction that was not given.
_UNKNOWN = -1


class ReferringSegmentationMetrics(evaluate.Metric):
    """mIoU, oIoU and Pr@0.5 … Pr@0.9 of binary masks; with samples without target also gIoU, cIoU, N-acc and T-acc.

    `add` and `add_batch` take masks of any size; across processes, gather `pixel_counts` and hand them to
    `add_counts`. `compute` gives the result of all samples since the last `compute`. Over samples that have a target:

    - mIoU: mean of I / (U + 1e-6).
    - oIoU: sum of I over sum of U; large objects weigh more.
    - Pr@t: share of samples whose IoU is above t.

    Where some reference masks are empty, also, over all samples (Liu et al., 2023; a prediction of less
    than `NO_TARGET_PIXELS` pixels counts as empty here):

    - gIoU: mean of I / U, where a sample without target counts as 1 if the prediction is empty, else as 0.
    - cIoU: sum of I over sum of U.
    - N-acc: share of the samples without target whose prediction is empty.
    - T-acc: share of the samples with a target whose prediction is not; 0 if there is none.

    Everything stays in memory: no cache file or lock is written, so any number of processes may run side by side.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # the base class would make a cache folder in the home directory, which is never used in memory

    def _info(self) -> evaluate.MetricInfo:
        counts = {name: datasets.Value("int64") for name in ("intersections", "unions", "predicted")}
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
        counts = [pixel_counts(*pair) for pair in zip(predictions, references, strict=True)]
        self.add_counts(*np.reshape(counts, (-1, 3)).T)

    def add_counts(self, intersections, unions, predicted=None):
        """Adds B samples by their pixel counts: sequences, arrays or tensors of B integers, as `pixel_counts` gives.

        Without `predicted`, the predictions' own pixels, nobody knows which samples have no target: all are taken to
        have one.
        """
        intersections, unions = (np.asarray(_to_array(counts), dtype=np.int64) for counts in (intersections, unions))
        if predicted is None:
            predicted = np.full(unions.shape, _UNKNOWN)
        predicted = np.asarray(_to_array(predicted), dtype=np.int64)
        if not intersections.shape == unions.shape == predicted.shape or intersections.ndim != 1:
            raise ValueError(
                f"intersections are {intersections.shape}, unions {unions.shape} and predicted {predicted.shape}: "
                "pass (B,) of each"
            )
        super().add_batch(intersections=intersections, unions=unions, predicted=predicted)

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

    def _compute(self, *, intersections, unions, predicted) -> dict[str, float]:
        intersections, unions, predicted = map(np.asarray, (intersections, unions, predicted))
        no_target = (predicted != _UNKNOWN) & (unions + intersections == predicted)  # the reference has no pixel
        result = _with_target(intersections[~no_target], unions[~no_target])
        return {**result, **_all(intersections, unions, predicted, no_target)} if no_target.any() else result


def pixel_counts(prediction, reference) -> tuple[int, int, int]:
    """Pixels in both masks, in either, and in the prediction: all that the metrics need of a sample.

    Args and errors: see `intersection_and_union`.
    """
    intersection, union = intersection_and_union(prediction, reference)
    return intersection, union, int(np.count_nonzero(_to_array(prediction) > 0))


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
    """One line, in percent, each number under its name: "mIoU 61.20  oIoU 60.08  Pr@0.5 70.00 …"."""
    return "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())


def _with_target(intersections: np.ndarray, unions: np.ndarray) -> dict[str, float]:
    """mIoU, oIoU and Pr@t; all 0 where there is no sample."""
    if not len(unions):
        return dict.fromkeys(METRIC_NAMES, 0.0)
    iou = intersections / (unions + 1e-6)
    metrics = (float(iou.mean()), float(intersections.sum() / max(unions.sum(), 1)))
    precision = (float((iou > t).mean()) for t in PRECISION_THRESHOLDS)
    return dict(zip(METRIC_NAMES, [*metrics, *precision], strict=True))


def _all(
    intersections: np.ndarray, unions: np.ndarray, predicted: np.ndarray, no_target: np.ndarray
) -> dict[str, float]:
    """gIoU, cIoU, N-acc and T-acc, with small predictions cleared."""
    empty = (predicted >= 0) & (predicted < NO_TARGET_PIXELS)
    unions = np.where(empty, unions + intersections - predicted, unions)  # what is left is the target
    intersections = np.where(empty, 0, intersections)
    iou = np.where(no_target, empty, intersections / np.maximum(unions, 1))
    with_target = ~no_target
    t_acc = float((~empty[with_target]).mean()) if with_target.any() else 0.0
    metrics = (iou.mean(), intersections.sum() / max(unions.sum(), 1), empty[no_target].mean(), t_acc)
    return dict(zip(NO_TARGET_METRIC_NAMES, map(float, metrics), strict=True))


def _to_array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
