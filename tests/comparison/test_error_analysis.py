"""Shares of errors and the IoU by word, against hand computations."""

from __future__ import annotations

import datasets
import pytest

from detris_peft.comparison.error_analysis import (
    MAX_WORDS,
    error_shares,
    sentences_by_id,
    shares_to_markdown,
    word_scores,
    words_to_markdown,
)
from detris_peft.comparison.error_figure import SAMPLES_PER_KIND, choose_errors
from detris_peft.comparison.results import SampleCounts
from tests.comparison.made_results import make_counts, make_result

SENTENCES = {"0": "The Red circle", "1": "red square, small red", "2": "left of it", "3": "the blue one"}


def counts_of(percentages, images=None):
    return make_counts([(value, 100) for value in percentages], images)


def runs_of(arm, *by_seed):
    return {seed: make_result(arm, seed, counts_of(values)) for seed, values in enumerate(by_seed)}


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_shares_of_the_kinds_of_errors_over_seeds():
    runs = runs_of("base", [0, 9, 11, 79], [0, 50, 81, 100])
    shares = error_shares(runs, "val")
    assert [share.mean for share in shares] == [0.375, 0.375, 0.25]
    assert [share.seeds for share in shares] == [2, 2, 2]
    assert error_shares(runs, "testA") is None
    table = cells(shares_to_markdown({"base": runs, "untrained": {}}, ["val"]))
    assert table[0] == ["arm", "val wrong object or none", "val inaccurate boundary", "val correct"]
    assert table[2:] == [["base", "37.5 ± 17.7", "37.5 ± 17.7", "25.0 ± 35.4"], ["untrained", "-", "-", "-"]]


def test_samples_without_a_target_are_no_errors():
    counts = SampleCounts(["0", "1"], [0, 1], [90, 0], [100, 5], [95, 5])
    assert not counts.has_target[1]
    shares = error_shares({0: make_result("base", 0, counts)}, "val")
    assert [share.mean for share in shares] == [0.0, 0.0, 1.0]
    assert choose_errors(counts) == {"wrong object or none": [], "inaccurate boundary": []}
    rows = word_scores({"base": {0: make_result("base", 0, counts)}}, "base", "val", SENTENCES)
    assert {row.word for row in rows} == {None, "the", "red", "circle"}


def test_words_are_ordered_by_the_iou_of_the_reference():
    results = {
        "other": runs_of("other", [80, 80, 80, 80]),
        "base": runs_of("base", [20, 40, 90, 50], [40, 60, 90, 50]),
    }
    rows = word_scores(results, "base", "val", SENTENCES)
    by_word = {row.word: row for row in rows}
    assert rows[0].word is None
    assert (rows[0].share, rows[0].scores["base"].mean) == (1.0, pytest.approx(0.55, abs=1e-6))
    assert by_word["red"].share == 0.5  # a sentence with the word twice counts once
    assert by_word["red"].scores["base"].mean == pytest.approx(0.4, abs=1e-6)
    assert by_word["red"].scores["other"].mean == pytest.approx(0.8, abs=1e-6)
    means = [row.scores["base"].mean for row in rows[1:]]
    assert means == sorted(means)
    table = cells(words_to_markdown(rows))
    assert table[0] == ["expressions", "share", "other", "base"]
    assert table[2] == ["all", "100", "80.0", "55.0 ± 7.1"]
    assert ["with “red”", "50", "80.0", "40.0 ± 14.1"] in table
    assert word_scores({"base": {}}, "base", "val", SENTENCES) == []
    del results["base"]
    assert [*word_scores(results, "base", "val", SENTENCES)[0].scores] == ["other"]


def test_rare_words_are_omitted_and_the_number_of_words_is_limited():
    counts = counts_of([50] * 21)
    results = {"base": {0: make_result("base", 0, counts)}}
    sentences = {name: f"shape {'twice' if int(name) < 2 else 'x'} once{name}" for name in counts.ids}
    assert {row.word for row in word_scores(results, "base", "val", sentences)} == {None, "shape", "twice", "x"}
    many = dict.fromkeys(counts.ids, " ".join(map(str, range(MAX_WORDS + 3))))
    assert len(word_scores(results, "base", "val", many)) == 1 + MAX_WORDS


@pytest.mark.parametrize(
    ("split", "expected"), [("val", {"7": "a", "9": "c"}), ("testB", {"7": "a", "7.1": "b", "9": "c"})]
)
def test_sentences_have_the_ids_of_their_samples(split, expected):
    columns = {"ref_id": [7, 9], "dataset": ["refcoco"] * 2, "sentences": [["a", "b"], ["c"]]}
    columns |= {"image_id": [1, 2], "no_target": [False, False], "image": [None, None]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    assert sentences_by_id(rows, split) == expected


def test_errors_are_chosen_evenly_and_from_different_images():
    values = [5] * 8 + [90] + [50] * 2
    chosen = choose_errors(counts_of(values, [0, 0, 1, 2, 3, 3, 4, 4, 5, 6, 6]))
    assert chosen == {"wrong object or none": ["0", "3", "6"], "inaccurate boundary": ["9"]}
    assert len(chosen["wrong object or none"]) == SAMPLES_PER_KIND
