"""Metrics: equality with the reference numbers, edge cases, and no files written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detris_peft.metrics import (
    NO_TARGET_PIXELS,
    ReferringSegmentationMetrics,
    format_metrics,
    intersection_and_union,
    pixel_counts,
)

NAMES = ["mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]
NO_TARGET_NAMES = ["gIoU", "cIoU", "N-acc", "T-acc"]


@pytest.fixture(scope="module")
def reference():
    return load_file(Path(__file__).parent / "fixtures" / "tiny_processing.safetensors")


def test_metrics_equal_the_reference(reference):
    metrics = ReferringSegmentationMetrics()
    for case in range(4):
        prediction, mask = reference[f"{case}.prediction"], reference[f"{case}.mask"]
        intersection, union = intersection_and_union(prediction, mask)
        assert intersection / (union + 1e-6) == pytest.approx(reference["iou"][case].item(), abs=1e-6)
        metrics.add(prediction=prediction, reference=mask)
    result = metrics.compute()
    assert list(result) == NAMES
    assert all(type(value) is float for value in result.values())
    expected = [reference["mean_iou"].item(), reference["overall_iou"].item(), *reference["precision"].tolist()]
    assert list(result.values()) == pytest.approx(expected, abs=1e-6)


def test_all_add_methods_give_the_same_result(reference):
    predictions = [reference[f"{case}.prediction"].numpy() for case in range(4)]
    masks = [reference[f"{case}.mask"].numpy() for case in range(4)]
    counts = torch.tensor([intersection_and_union(*pair) for pair in zip(predictions, masks, strict=True)])
    metrics = ReferringSegmentationMetrics()
    expected = metrics.compute(predictions=predictions, references=masks)
    metrics.add_batch(predictions=predictions[:1], references=masks[:1])
    metrics.add_counts(counts[1:, 0], counts[1:, 1])
    assert len(metrics) == 4
    assert metrics.compute() == expected
    metrics.add_counts(counts[:, 0].tolist(), counts[:, 1].numpy())
    assert metrics.compute() == expected  # `compute` has reset the state


def test_mean_and_overall_iou_weigh_differently_and_precision_is_strict():
    metrics = ReferringSegmentationMetrics()
    metrics.add_counts([1, 900], [2, 1000])
    result = metrics.compute()
    assert result["mIoU"] == pytest.approx(0.7, abs=1e-6)
    assert result["oIoU"] == pytest.approx(901 / 1002)
    assert [result[name] for name in NAMES[2:]] == [0.5, 0.5, 0.5, 0.5, 0.0]  # 1/2 is not > 0.5, 0.9 not > 0.9


def test_empty_masks_count_as_zero_and_never_divide_by_zero():
    empty = np.zeros((3, 3), bool)
    metrics = ReferringSegmentationMetrics()
    metrics.add_counts([0], [0])
    assert list(metrics.compute().values()) == [0.0] * 7
    result = metrics.compute(predictions=[empty], references=[empty])
    assert [result[name] for name in NAMES] == [0.0] * 7
    assert [result[name] for name in NO_TARGET_NAMES] == [1.0, 0.0, 1.0, 0.0]


def _square(side, size=20):
    mask = np.zeros((size, size), bool)
    mask[:side, :side] = True
    return mask


def test_sentences_without_a_target_have_separate_metrics():
    """Expected values are computed by hand from gRefCOCO's definitions."""
    empty_mask = _square(0)
    cases = [  # prediction, reference
        (_square(10), _square(10)),  # IoU 1
        (_square(10), _square(20)),  # IoU 1/4
        (_square(0), _square(10)),  # target missed
        (_square(7), _square(10)),  # 49 pixels count as empty, although IoU is 0.49
        (_square(0), empty_mask),  # correctly empty
        (_square(7), empty_mask),  # 49 pixels count as empty
        (_square(8), empty_mask),  # 64 pixels do not
    ]
    result = ReferringSegmentationMetrics().compute(
        predictions=[prediction for prediction, _ in cases], references=[reference for _, reference in cases]
    )
    assert list(result) == NAMES + NO_TARGET_NAMES
    assert all(type(value) is float for value in result.values())
    assert result["gIoU"] == pytest.approx((1 + 1 / 4 + 0 + 0 + 1 + 1 + 0) / 7)
    assert result["cIoU"] == pytest.approx((100 + 100) / (100 + 400 + 100 + 100 + 64))
    assert result["N-acc"] == pytest.approx(2 / 3)
    assert result["T-acc"] == pytest.approx(2 / 4)
    # The other metrics cover the samples with a target, without clearing.
    assert result["mIoU"] == pytest.approx((1 + 0.25 + 0 + 0.49) / 4, abs=1e-6)
    assert result["oIoU"] == pytest.approx((100 + 100 + 49) / (100 + 400 + 100 + 100))
    assert result["Pr@0.5"] == 1 / 4


def test_a_sample_without_a_target_does_not_change_the_other_metrics(reference):
    predictions = [reference[f"{case}.prediction"].numpy() for case in range(4)]
    masks = [reference[f"{case}.mask"].numpy() for case in range(4)]
    metrics = ReferringSegmentationMetrics()
    alone = metrics.compute(predictions=predictions, references=masks)
    assert list(alone) == NAMES  # no no-target metrics if every sample has a target
    metrics.add_batch(predictions=predictions, references=masks)
    metrics.add(prediction=_square(20), reference=_square(0))
    assert {name: value for name, value in metrics.compute().items() if name in NAMES} == alone


@pytest.mark.parametrize(("pixels", "empty"), [(NO_TARGET_PIXELS - 1, 1.0), (NO_TARGET_PIXELS, 0.0)])
def test_predictions_below_the_pixel_limit_count_as_empty(pixels, empty):
    prediction = np.arange(400).reshape(20, 20) < pixels
    assert pixel_counts(prediction, prediction) == (pixels, pixels, pixels)
    result = ReferringSegmentationMetrics().compute(
        predictions=[prediction, prediction], references=[_square(0), prediction]
    )
    assert (result["N-acc"], result["T-acc"]) == (empty, 1 - empty)


def test_counts_beyond_32_bits():
    metrics = ReferringSegmentationMetrics()
    metrics.add_counts([2**40] * 4, [2**41] * 4)
    assert metrics.compute()["oIoU"] == 0.5


@pytest.mark.parametrize("foreground", [True, 1, 255, 0.2])
def test_ground_truth_above_zero_is_foreground(foreground):
    reference = np.array([[0, foreground], [0, foreground]])
    assert intersection_and_union(np.array([[1, 1], [0, 0]], np.uint8), reference) == (1, 3)
    assert intersection_and_union(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.from_numpy(reference)) == (1, 3)


def test_invalid_input_raises_clear_errors():
    metrics = ReferringSegmentationMetrics()
    mask = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="expected at least one sample, got none; call add"):
        metrics.compute()
    with pytest.raises(ValueError, match=r"got prediction \(2, 3\) and reference \(3, 2\)"):
        metrics.add(prediction=mask, reference=mask.T)
    with pytest.raises(ValueError, match="threshold probabilities"):
        metrics.add(prediction=mask * 0.4, reference=mask)
    with pytest.raises(ValueError, match="got 1 predictions and 2 references"):
        metrics.add_batch(predictions=[mask], references=[mask, mask])
    with pytest.raises(ValueError, match=r"of shape \(B,\), got \(2,\), \(1,\) and \(1,\)"):
        metrics.add_counts([1, 2], [3])
    assert len(metrics) == 0


def test_metrics_are_formatted_as_one_line():
    line = format_metrics(dict(zip(NAMES, (0.612, 0.6008, 0.7, 0.6, 0.5, 0.4, 0.125), strict=True)))
    assert line == "mIoU 61.20  oIoU 60.08  Pr@0.5 70.00  Pr@0.6 60.00  Pr@0.7 50.00  Pr@0.8 40.00  Pr@0.9 12.50"


def test_no_files_or_folders_are_written(tmp_path):
    code = (
        "from detris_peft.metrics import ReferringSegmentationMetrics as M\n"
        "a, b = M(), M()\n"
        "a.add_counts([1], [2]); b.add_counts([1], [4])\n"
        "print(a.compute()['oIoU'], b.compute()['oIoU'])"
    )
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**keep, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["0.5", "0.25"]
    assert list(tmp_path.rglob("*")) in ([work, home], [home, work])


def test_masks_of_every_type_are_counted():
    mask = torch.tensor([[1, 0], [1, 1]])
    for kind in (torch.bfloat16, torch.float16, torch.bool, torch.uint8):
        other = mask.to(kind)
        other = other.requires_grad_() if other.is_floating_point() else other
        assert pixel_counts(other, mask) == pixel_counts(mask.numpy(), other) == (3, 3, 3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "mask",
        np.full((2, 2), np.nan),
        np.full((2, 2), None),
        np.ones((2, 2), complex),
        [[1], [1, 0]],
    ],
)
def test_values_that_are_no_masks_are_named(value):
    mask = np.ones((2, 2), bool)
    for arguments, name in (((value, mask), "prediction"), ((mask, value), "reference")):
        with pytest.raises(ValueError, match=f"^{name}: expected a"):
            pixel_counts(*arguments)
    with pytest.raises(
        (ValueError, TypeError), match=r"^references: expected a sequence of masks|^reference: expected"
    ):
        ReferringSegmentationMetrics().add_batch(predictions=[mask], references=value if value is None else [value])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (([1.5], [2], [2]), "intersections: expected pixel counts"),
        (([1], [2**70], [2]), "unions: expected pixel counts"),
        (([1], [2], [float("nan")]), "predicted: expected pixel counts"),
        (([-3], [2], [2]), "intersections: expected pixel counts"),
        (("a", "b", "c"), "intersections: expected pixel counts"),
        (([3], [2], [3]), "intersections: expected counts of at most those of unions"),
        (([2], [3], [1]), "intersections: expected counts of at most those of unions and predicted"),
    ],
)
def test_impossible_counts_are_named(counts, message):
    metrics = ReferringSegmentationMetrics()
    with pytest.raises(ValueError, match=message):
        metrics.add_counts(*counts)
    assert len(metrics) == 0
