"""mIoU, oIoU and precision at IoU thresholds, and gRefCOCO's metrics for sentences without a target.

Each sample is reduced to three pixel counts, which are exact, small to keep, and easy to gather from all ranks. mIoU
and oIoU are always reported together because they are often confused.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from .metric_names import METRIC_NAMES, NO_TARGET_METRIC_NAMES, PRECISION_THRESHOLDS

# A smaller prediction counts as "no target". DETRIS has no separate output for that; for such models the authors of
# gRefCOCO clear masks of fewer than 50 pixels (Liu et al., 2023).
NO_TARGET_PIXELS = 50
_UNKNOWN = -1  # placeholder for predicted pixels that were not passed


class ReferringSegmentationMetrics(evaluate.Metric):
    """mIoU, oIoU and Pr@0.5 to Pr@0.9 of binary masks; for data with no-target samples also gIoU, cIoU, N-acc, T-acc.

    `add` and `add_batch` take masks of any size. With several ranks, gather `pixel_counts` and pass them to
    `add_counts`. `compute` returns the result of all samples since the last `compute`. Over samples with a target:

    - mIoU: mean of I / (U + 1e-6).
    - oIoU: sum of I over sum of U; large objects weigh more.
    - Pr@t: share of samples whose IoU is above t.

    If some reference masks are empty, also, over all samples (Liu et al., 2023; a prediction of fewer than
    `NO_TARGET_PIXELS` pixels counts as empty here):

    - gIoU: mean of I / U, where a sample without a target counts as 1 if the prediction is empty, else as 0.
    - cIoU: sum of I over sum of U.
    - N-acc: share of the samples without a target whose prediction is empty.
    - T-acc: share of the samples with a target whose prediction is not empty; 0 if no sample has a target.

    All counts stay in memory: no cache or lock files are written, so any number of processes can run in parallel.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # the base class would create a cache folder in the home directory, which stays unused

    def _info(self) -> evaluate.MetricInfo:
        counts = {name: datasets.Value("int64") for name in ("intersections", "unions", "predicted")}
        return evaluate.MetricInfo(
            description="Mean and overall IoU and precision at thresholds for referring image segmentation.",
            citation="",
            features=datasets.Features(counts),
        )

    def add(self, *, prediction, reference):
        """Add one sample: two masks of the same shape, as in `intersection_and_union`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references):
        """Add B samples: two sequences of B masks; shapes may differ between samples.

        Raises:
            TypeError: one of the two is not a sequence.
            ValueError: their numbers differ, or a mask is invalid; see `intersection_and_union`.
        """
        for name, masks in (("predictions", predictions), ("references", references)):
            if not isinstance(masks, (Sequence, np.ndarray, torch.Tensor)):
                raise TypeError(f"{name}: expected a sequence of masks, got {type(masks).__name__}; pass a list")
        if len(predictions) != len(references):
            raise ValueError(
                f"expected as many predictions as references, got {len(predictions)} predictions and "
                f"{len(references)} references; pass one of each per sample"
            )
        counts = [pixel_counts(*pair) for pair in zip(predictions, references, strict=True)]
        self.add_counts(*np.reshape(counts, (-1, 3)).T)

    def add_counts(self, intersections, unions, predicted=None):
        """Add B samples by their pixel counts: sequences, arrays or tensors of B integers, as from `pixel_counts`.

        Without `predicted`, the number of predicted pixels, no-target samples cannot be identified; all samples are
        then assumed to have a target.

        Raises:
            ValueError: the counts are not integers from 0 on, not of the same shape (B,), or contradict each other.
        """
        intersections, unions = _to_counts(intersections, "intersections"), _to_counts(unions, "unions")
        predicted = np.full(unions.shape, _UNKNOWN) if predicted is None else _to_counts(predicted, "predicted")
        if not intersections.shape == unions.shape == predicted.shape or intersections.ndim != 1:
            raise ValueError(
                f"expected intersections, unions and predicted of shape (B,), got {intersections.shape}, "
                f"{unions.shape} and {predicted.shape}; pass one count of each per sample"
            )
        if (intersections > unions).any() or ((predicted != _UNKNOWN) & (predicted < intersections)).any():
            raise ValueError(
                "intersections: expected counts of at most those of unions and predicted, got larger ones; pass them "
                "in the order intersections, unions, predicted"
            )
        super().add_batch(intersections=intersections, unions=unions, predicted=predicted)

    def compute(self, *, predictions=None, references=None) -> dict[str, float]:
        """Return the metrics keyed by name, each in [0, 1], and reset the state.

        Raises:
            ValueError: no sample was added.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if len(self) == 0:
            raise ValueError("expected at least one sample, got none; call add, add_batch or add_counts first")
        result = super().compute()
        assert result is not None  # None only on other processes of evaluate's file-based gathering
        return result

    def _compute(self, *, intersections, unions, predicted) -> dict[str, float]:
        intersections, unions, predicted = map(np.asarray, (intersections, unions, predicted))
        no_target = (predicted != _UNKNOWN) & (unions + intersections == predicted)  # the reference is empty
        result = _target_metrics(intersections[~no_target], unions[~no_target])
        if no_target.any():
            result.update(_no_target_metrics(intersections, unions, predicted, no_target))
        return result


def pixel_counts(prediction, reference) -> tuple[int, int, int]:
    """Return the pixel counts that the metrics need: intersection, union, and predicted pixels.

    For arguments and errors see `intersection_and_union`.
    """
    prediction, reference = _to_mask(prediction, "prediction"), _to_mask(reference, "reference")
    intersection, union = intersection_and_union(prediction, reference)
    return intersection, union, int(np.count_nonzero(prediction > 0))


def intersection_and_union(prediction, reference) -> tuple[int, int]:
    """Return the number of pixels in both masks and in either mask.

    Args:
        prediction: array or tensor, any shape; bool or integer, foreground > 0. Floats must already be 0 or 1.
        reference: array or tensor of the same shape; any dtype, foreground > 0.

    Raises:
        ValueError: the shapes differ, a mask does not hold numbers or holds NaN, or the prediction holds floats other
            than 0 and 1.
    """
    predicted, actual = _to_mask(prediction, "prediction"), _to_mask(reference, "reference")
    if predicted.shape != actual.shape:
        raise ValueError(
            f"expected masks of the same shape, got prediction {predicted.shape} and reference {actual.shape}; "
            "resize one of them"
        )
    if np.issubdtype(predicted.dtype, np.floating) and not np.isin(predicted, (0, 1)).all():
        raise ValueError("expected a binary prediction, got floats other than 0 and 1; threshold probabilities first")
    predicted, actual = predicted > 0, actual > 0
    return int(np.count_nonzero(predicted & actual)), int(np.count_nonzero(predicted | actual))


def format_metrics(metrics: dict[str, float]) -> str:
    """Format metrics as one line of percentages: "mIoU 61.20  oIoU 60.08  Pr@0.5 70.00 …"."""
    return "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())


def _target_metrics(intersections: np.ndarray, unions: np.ndarray) -> dict[str, float]:
    """Return mIoU, oIoU and Pr@t; all are 0 without samples."""
    if not len(unions):
        return dict.fromkeys(METRIC_NAMES, 0.0)
    iou = intersections / (unions + 1e-6)
    metrics = (float(iou.mean()), float(intersections.sum() / max(unions.sum(), 1)))
    precision = (float((iou > t).mean()) for t in PRECISION_THRESHOLDS)
    return dict(zip(METRIC_NAMES, [*metrics, *precision], strict=True))


def _no_target_metrics(
    intersections: np.ndarray, unions: np.ndarray, predicted: np.ndarray, no_target: np.ndarray
) -> dict[str, float]:
    """Return gIoU, cIoU, N-acc and T-acc, with small predictions cleared."""
    empty = (predicted >= 0) & (predicted < NO_TARGET_PIXELS)
    unions = np.where(empty, unions + intersections - predicted, unions)  # the remaining union is the target
    intersections = np.where(empty, 0, intersections)
    iou = np.where(no_target, empty, intersections / np.maximum(unions, 1))
    with_target = ~no_target
    t_acc = float((~empty[with_target]).mean()) if with_target.any() else 0.0
    metrics = (iou.mean(), intersections.sum() / max(unions.sum(), 1), empty[no_target].mean(), t_acc)
    return dict(zip(NO_TARGET_METRIC_NAMES, map(float, metrics), strict=True))


def _to_mask(values, name: str) -> np.ndarray:
    """Return a mask as an array of booleans or numbers."""
    array = _to_array(values, name)
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and np.isnan(array).any()):
        got = "NaN" if array.dtype.kind == "f" else f"{type(values).__name__} of {array.dtype}"
        raise ValueError(f"{name}: expected a mask of booleans or numbers, got {got}; pass an array or a tensor")
    return array


def _to_counts(values, name: str) -> np.ndarray:
    """Return pixel counts as an int64 array."""
    array = _to_array(values, name)
    is_integer = array.dtype.kind in "ui" or (array.dtype.kind == "f" and not (array % 1).any())
    if array.size and (not is_integer or (array < _UNKNOWN).any() or (array >= 2**62).any()):
        raise ValueError(f"{name}: expected pixel counts (B,), integers of at least 0, got {values!r:.80}; pass these")
    return array.astype(np.int64)


def _to_array(values, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16
    try:
        return np.asarray(values)
    except ValueError:  # nested lists of different lengths
        raise ValueError(f"{name}: expected an array, got nested lists of different lengths; pad them") from None
