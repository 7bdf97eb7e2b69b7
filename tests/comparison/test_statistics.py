"""Scores over seeds and paired differences, checked against hand computations and a known case."""

from __future__ import annotations

import numpy as np
import pytest

from detris_peft.comparison.statistics import paired_differences, resampled_sums, score
from tests.comparison.made_results import make_counts, make_result, random_counts


def test_mean_and_deviation_over_seeds():
    assert score([0.5, 0.7]) == pytest.approx((0.6, 0.02**0.5, 2))
    assert score([0.5]) == (0.5, None, 1)


def test_differences_are_those_of_a_hand_computation():
    # IoU of the reference: 0.5 and 0.2 (seed 0); of the arm: 1.0 and 0.4 (seed 0), 0.5 and 0.6 (seed 1).
    reference = {0: make_result("a", 0, make_counts([(5, 10), (4, 20)]))}
    arm = {
        0: make_result("b", 0, make_counts([(10, 10), (8, 20)])),
        1: make_result("b", 1, make_counts([(5, 10), (12, 20)])),
    }
    found = paired_differences({"a": reference, "b": arm}, "a", "val", resamples=50)["b"]
    assert found["mIoU"].value == pytest.approx((1.0 + 0.4) / 2 - (0.5 + 0.2) / 2, abs=1e-6)
    assert found["oIoU"].value == pytest.approx(18 / 30 - 9 / 30)
    assert found["mIoU"].seeds == 1  # the reference has no seed 1
    reference[1] = make_result("a", 1, make_counts([(5, 10), (16, 20)]))
    found = paired_differences({"a": reference, "b": arm}, "a", "val", resamples=50)["b"]
    assert found["mIoU"].value == pytest.approx((0.7 + 0.55) / 2 - (0.35 + 0.65) / 2, abs=1e-6)
    assert found["oIoU"].value == pytest.approx(((18 - 9) / 30 + (17 - 21) / 30) / 2)
    assert found["oIoU"].seeds == 2


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    """For many independent images, the bootstrap interval of a mean is mean ± 1.96 standard errors."""
    rng = np.random.default_rng(0)
    base, arm = (random_counts(rng, 800, mean) for mean in (0.5, 0.6))
    base, arm = (make_counts([*zip(c.intersections, c.unions, strict=True)]) for c in (base, arm))
    results = {"a": {0: make_result("a", 0, base)}, "b": {0: make_result("b", 0, arm)}}
    found = paired_differences(results, "a", "val")["b"]["mIoU"]
    differences = arm.iou - base.iou
    error = 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    assert found.value == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.value - error, found.value + error), abs=0.06 * error)


def test_sentences_of_one_image_are_resampled_together():
    """Ten copies of each sentence carry no information: the interval stays as wide."""
    rng = np.random.default_rng(1)
    unions = np.full(60, 100)
    pairs = [[*zip(rng.integers(0, 100, 60).tolist(), unions.tolist(), strict=True)] for _ in range(2)]
    widths = []
    for copies in (1, 10):
        counts = [make_counts(p * copies, [*range(60)] * copies) for p in pairs]
        results = {name: {0: make_result(name, 0, c)} for name, c in zip("ab", counts, strict=True)}
        found = paired_differences(results, "a", "val", resamples=1000)["b"]["mIoU"]
        widths.append(found.high - found.low)
    assert widths[0] == pytest.approx(widths[1])


def test_resamples_are_seeded_and_of_the_right_size():
    sums = np.stack([np.ones(30), np.arange(30)], axis=1)
    drawn = resampled_sums(sums, 1100, seed=3)
    assert drawn.shape == (1100, 2)
    assert (drawn[:, 0] == 30).all()
    assert np.array_equal(drawn, resampled_sums(sums, 1100, seed=3))
    assert not np.array_equal(drawn, resampled_sums(sums, 1100, seed=4))


def test_sentences_without_target_are_excluded():
    """They have no IoU: gRefCOCO's samples whose reference mask is empty."""
    base, arm = make_counts([(5, 10), (0, 7)]), make_counts([(10, 10), (0, 9)])
    for counts in (base, arm):
        counts.predicted[:] = [10, counts.unions[1]]
    results = {"a": {0: make_result("a", 0, base)}, "b": {0: make_result("b", 0, arm)}}
    found = paired_differences(results, "a", "val", resamples=50)["b"]
    assert found["mIoU"].value == pytest.approx(0.5, abs=1e-6)
    assert found["mIoU"][1:] == (None, None, 1)  # a single image with a target cannot be resampled


def test_results_of_other_samples_are_refused():
    results = {
        "a": {0: make_result("a", 0, make_counts([(1, 2), (1, 2)]))},
        "b": {0: make_result("b", 0, make_counts([(1, 2)]))},
    }
    with pytest.raises(ValueError, match="val: expected the same samples in all results, got others in b, seed 0"):
        paired_differences(results, "a", "val")


def test_without_the_reference_there_are_no_differences():
    results = {"a": {}, "b": {0: make_result("b", 0, make_counts([(1, 2)]))}}
    assert paired_differences(results, "a", "val") == {}
