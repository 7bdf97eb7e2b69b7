"""Arguments that change the training samples: `no_target_ratio` and `mosaic_ratio`."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator

from detris_peft.data import EvaluationSamples
from detris_peft.evaluation import evaluate
from detris_peft.metrics import METRIC_NAMES
from detris_peft.training import train
from detris_peft.training.data_loading import create_loader
from tests.helpers.toy_run import arguments


def test_by_default_the_samples_have_neither(processor, rows, tmp_path):
    loader, _ = create_loader(rows[0], processor, arguments(tmp_path), Accelerator(cpu=True))
    assert loader.dataset.mosaic is None
    assert loader.dataset.absent is None


def test_the_arguments_reach_the_samples(processor, rows, tmp_path):
    options = arguments(tmp_path, no_target_ratio=0.3, mosaic_ratio=0.9)
    loader, _ = create_loader(rows[0], processor, options, Accelerator(cpu=True))
    plain, _ = create_loader(rows[0], processor, arguments(tmp_path), Accelerator(cpu=True))
    pairs = [(plain.dataset[index], loader.dataset[index]) for index in range(len(rows[0]))]
    assert any(after.no_target for _, after in pairs)
    assert any(np.any(np.asarray(after.image) != np.asarray(before.image)) for before, after in pairs)
    assert loader.dataset.mosaic.ratio == 0.9
    assert loader.dataset.no_target_ratio == 0.3


@pytest.mark.usefixtures("no_plots")
def test_a_run_with_both_scores_no_target_pairs_and_says_how_many_expressions_allow_a_mosaic(
    model, processor, rows, tmp_path, capsys
):
    options = arguments(tmp_path / "run", epochs=1, no_target_ratio=0.3, mosaic_ratio=0.5)
    history = train(model, processor, *rows, options)
    printed = capsys.readouterr().out
    assert "mosaic_ratio: only images whose expression is English and known to name no position become" in printed
    record = history[-1]
    assert {"N-acc", "T-acc"} <= set(record)
    assert not {"gIoU", "cIoU"} & set(record)
    plain = evaluate(model, processor, EvaluationSamples(rows[1]), progress=False)
    assert {name: record[name] for name in plain} == pytest.approx(plain, abs=1e-6)
    pairs = evaluate(model, processor, EvaluationSamples(rows[1], no_target_pairs=True), progress=False)
    assert {name: record[name] for name in pairs} == pytest.approx(pairs, abs=1e-6)
    assert set(plain) == {*METRIC_NAMES, "loss"}


@pytest.mark.parametrize("name", ["no_target_ratio", "mosaic_ratio"])
def test_a_stream_is_refused_before_anything_is_written(model, processor, rows, tmp_path, name):
    options = arguments(tmp_path / "run", **{name: 0.1})
    with pytest.raises(ValueError, match=rf"^{name}: expected a dataset that is not streamed, .*, or omit {name}\.$"):
        train(model, processor, rows[0].to_iterable_dataset(), rows[1], options)
    assert not (tmp_path / "run").exists()


def test_rows_of_one_category_are_refused_before_anything_is_written(model, processor, rows, tmp_path):
    options = arguments(tmp_path / "run", no_target_ratio=0.1)
    for number in (0, 1):
        changed = list(rows)
        changed[number] = rows[number].map(lambda _: {"category_id": 1}, features=rows[0].features)
        with pytest.raises(ValueError, match=r"category_id: expected several categories, .*got 1 in"):
            train(model, processor, *changed, options)
    assert not (tmp_path / "run").exists()
