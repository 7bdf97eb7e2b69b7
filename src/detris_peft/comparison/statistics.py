"""Means over seeds, and paired differences between arms with bootstrap intervals over images.

Sentences of one image are not independent, so images are resampled, not samples. The intervals therefore describe what
another draw of images could give. They do not describe what other seeds could give; for that, see the deviation over
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .results import COMPARED_METRICS, RunResult, SampleCounts

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 500  # resamples drawn at once, to bound memory


class Score(NamedTuple):
    """A metric over seeds: mean, and standard deviation (of the sample, n - 1), None for a single seed."""

    mean: float
    deviation: float | None
    seeds: int


class Difference(NamedTuple):
    """A paired difference to the reference arm, averaged over the seeds that both have.

    Its interval from low to high is None for a single image, which cannot be resampled.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int


def score(values: Sequence[float]) -> Score:
    """Return mean and standard deviation of a metric over seeds."""
    return Score(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def paired_differences(
    results: Mapping[str, Mapping[int, RunResult]],
    reference: str,
    split: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Difference]]:
    """Return the differences of mIoU and oIoU between each arm and the reference arm on the same samples.

    Args:
        results: results by arm and seed.
        reference: the reference arm.
        split: the split.
        resamples: number of bootstrap resamples of the images.
        seed: seed of the resamples, which are the same for all arms.

    Returns:
        Differences by arm and metric; an arm without a seed that the reference has too is missing.

    Raises:
        ValueError: two results are of different samples.
    """
    scored = {
        arm: {number: result.samples[split] for number, result in runs.items() if split in result.samples}
        for arm, runs in results.items()
    }
    base = scored.get(reference, {})
    pairs = {
        arm: [(runs[number], base[number]) for number in sorted(runs.keys() & base.keys())]
        for arm, runs in scored.items()
        if arm != reference and runs.keys() & base.keys()
    }
    if not pairs:
        return {}
    first = next(iter(base.values()))
    for arm, runs in scored.items():
        for number, samples in runs.items():
            if (samples.ids, samples.images) != (first.ids, first.images):
                raise ValueError(
                    f"{split}: expected the same samples in all results, got others in {arm}, seed {number}; remove "
                    "that result."
                )
    images, number_of_images = _image_indices(first)
    if not number_of_images:
        return {}
    columns, weights = [], np.bincount(images, minlength=number_of_images).astype(float)
    for runs in pairs.values():
        columns += [column for pair in runs for column in _columns(pair, images, number_of_images)]
    sums = np.stack([weights, *columns], axis=1)
    drawn = np.concatenate([sums.sum(axis=0, keepdims=True), resampled_sums(sums, resamples, seed)])
    result, position = {}, 1
    for arm, runs in pairs.items():
        parts = drawn[:, position : position + 5 * len(runs)].reshape(len(drawn), len(runs), 5)
        position += 5 * len(runs)
        iou_difference, i, u, base_i, base_u = np.moveaxis(parts, 2, 0)
        m_iou = iou_difference.mean(axis=1) / drawn[:, 0]
        o_iou = (i / np.maximum(u, 1) - base_i / np.maximum(base_u, 1)).mean(axis=1)
        values = zip(COMPARED_METRICS, (m_iou, o_iou), strict=True)
        result[arm] = {metric: _difference(column, number_of_images, len(runs)) for metric, column in values}
    return result


def resampled_sums(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return column sums over images drawn with replacement.

    Args:
        sums: (M, K) values of each image.
        resamples: number of draws R of M images each.
        seed: random seed.

    Returns:
        (R, K) sums.
    """
    rng, number = np.random.default_rng(seed), len(sums)
    drawn = [
        rng.multinomial(number, np.full(number, 1 / number), size=min(_CHUNK, resamples - start)) @ sums
        for start in range(0, resamples, _CHUNK)
    ]
    return np.concatenate(drawn)


def _difference(column: np.ndarray, images: int, seeds: int) -> Difference:
    """Return a difference from its value on all images, followed by its values on the resamples."""
    if images == 1:
        return Difference(float(column[0]), None, None, seeds)
    low, high = np.quantile(column[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(float(column[0]), float(low), float(high), seeds)


def _image_indices(samples: SampleCounts) -> tuple[np.ndarray, int]:
    """Return the index of the image of each sample that has a target, and the number of these images."""
    names, indices = np.unique(np.array(samples.images)[samples.has_target], return_inverse=True)
    return indices, len(names)


def _columns(pair: tuple[SampleCounts, SampleCounts], images: np.ndarray, number: int) -> list[np.ndarray]:
    """Return sums over each image: difference of IoU; intersections and unions of the arm and the reference."""
    arm, base = pair
    mask = base.has_target
    values = (arm.iou - base.iou, arm.intersections, arm.unions, base.intersections, base.unions)
    return [np.bincount(images, np.array(column, float)[mask], minlength=number) for column in values]
