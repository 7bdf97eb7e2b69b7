"""What the arms get wrong: the wrong object or an inaccurate boundary, and in expressions with which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np

from .results import RunResult, SampleCounts, sample_ids
from .scores import evaluation_samples
from .statistics import Score, score
from .table import format_score, markdown_table

WRONG_OBJECT, INACCURATE_BOUNDARY, CORRECT = range(3)
ERROR_KINDS = ("wrong object or none", "inaccurate boundary", "correct")
THRESHOLDS = (0.1, 0.8)  # IoU from which on the object is the right one, and from which on the mask is correct
MIN_WORD_SHARE = 0.05  # of the expressions
MAX_WORDS = 12


class WordScores(NamedTuple):
    """IoU of the expressions that contain a word.

    Attributes:
        word: the word in lower case; None: all expressions.
        share: share of the expressions.
        scores: mean IoU of these expressions, by arm.
    """

    word: str | None
    share: float
    scores: dict[str, Score]


def error_kinds(counts: SampleCounts) -> np.ndarray:
    """Return the index of each sample's kind in `ERROR_KINDS`, (N,); ignore it for samples without a target."""
    return np.digitize(counts.iou, THRESHOLDS)


def error_shares(runs: Mapping[int, RunResult], split: str) -> list[Score] | None:
    """Return the share of each kind over the seeds of an arm, in the order of `ERROR_KINDS`.

    Args:
        runs: results of the arm by seed.
        split: the split. Its samples without a target are not counted.

    Returns:
        The shares; None without a result that has samples with a target.
    """
    shares = [
        np.bincount(error_kinds(counts)[counts.has_target], minlength=len(ERROR_KINDS)) / counts.has_target.sum()
        for counts in _counts(runs, split)
    ]
    return [score(column) for column in np.transpose(shares)] if shares else None


def shares_to_markdown(results: Mapping[str, Mapping[int, RunResult]], splits: Sequence[str]) -> str:
    """Return a table in Markdown of the shares of each kind: one row per arm, in percent."""
    lines = [["arm", *(f"{split} {kind}" for split in splits for kind in ERROR_KINDS)]]
    for arm, runs in results.items():
        by_split = [error_shares(runs, split) or [None] * len(ERROR_KINDS) for split in splits]
        lines.append([arm, *(format_score(value) for shares in by_split for value in shares)])
    return markdown_table(lines)


def sentences_by_id(rows: datasets.Dataset, split: str) -> dict[str, str]:
    """Return the sentence of each sample of a split by the sample's id."""
    samples, texts = evaluation_samples(rows, split), rows["sentences"][:]
    pairs = [*zip(samples.row_index.tolist(), samples.sentence_index.tolist(), strict=True)]
    names = sample_ids(rows, samples.row_index, samples.sentence_index)
    return {name: (texts[row] or [""])[index] for name, (row, index) in zip(names, pairs, strict=True)}


def word_scores(
    results: Mapping[str, Mapping[int, RunResult]], reference: str, split: str, sentences: Mapping[str, str]
) -> list[WordScores]:
    """Return the IoU of all expressions, and of those with each frequent word, the lowest one first.

    The order is that of the reference arm, or of the first arm with a result if the reference arm has none.

    Args:
        results: results by arm and seed.
        reference: the reference arm.
        split: the split. Its samples without a target are not counted.
        sentences: sentence of each sample by its id, see `sentences_by_id`.
    """
    scored = {arm: counts for arm, runs in results.items() if (counts := _counts(runs, split))}
    if not scored:
        return []
    ranking = reference if reference in scored else next(iter(scored))
    first = scored[ranking][0]
    texts = {name: sentences[name] for name in np.array(first.ids)[first.has_target].tolist()}
    words = {name: set(re.findall(r"\w+(?:'\w+)?", text.lower())) for name, text in texts.items()}
    numbers = Counter(word for own in words.values() for word in own)

    def row(word: str | None, names: set[str]) -> WordScores:
        means = {arm: [_mean_iou(counts, names) for counts in runs] for arm, runs in scored.items()}
        return WordScores(word, len(names) / len(words), {arm: score(values) for arm, values in means.items()})

    rows = [
        row(word, {name for name, own in words.items() if word in own})
        for word, number in sorted(numbers.items())
        if number >= MIN_WORD_SHARE * len(words)
    ]
    return [row(None, {*words}), *sorted(rows, key=lambda line: line.scores[ranking].mean)[:MAX_WORDS]]


def words_to_markdown(rows: Sequence[WordScores]) -> str:
    """Return a table in Markdown: one row per word, one column per arm, in percent."""
    arms = [*rows[0].scores]
    lines = [["expressions", "share", *arms]]
    for row in rows:
        name = "all" if row.word is None else f"with “{row.word}”"
        lines.append([name, f"{100 * row.share:.0f}", *(format_score(row.scores[arm]) for arm in arms)])
    return markdown_table(lines)


def _counts(runs: Mapping[int, RunResult], split: str) -> list[SampleCounts]:
    """Return the pixel counts of the runs in which some sample of the split has a target."""
    found = (run.samples[split] for run in runs.values() if split in run.samples)
    return [counts for counts in found if counts.has_target.any()]


def _mean_iou(counts: SampleCounts, names: set[str]) -> float:
    return float(counts.iou[[name in names for name in counts.ids]].mean())
