"""The JSON file of a result: written compactly, read back equal, and checked."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest

from detris_peft.comparison.results import read_result, result_file, sample_ids
from detris_peft.comparison.settings import comparable, first_difference, settings_hash, without_paths
from tests.comparison.made_results import make_result, random_counts


@pytest.fixture
def result():
    return make_result("lora", 3, random_counts(np.random.default_rng(0), 10, 0.5))


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, "fp32"),
        ({"mixed_precision": "bf16"}, "bf16"),
        ({"mixed_precision": "no"}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
    ],
)
def test_the_precision_of_a_result_and_of_one_of_an_earlier_version(result, options, precision):
    assert replace(result, options=options).precision == precision
    settings = {} if precision == "fp32" else {"precision": precision}
    assert comparable({"options": options}, [])["options"] == settings


def test_a_result_is_read_back_equal_and_has_one_line_per_field(result, tmp_path):
    assert read_result(tmp_path, "lora", 3) is None
    result.write(tmp_path)
    assert read_result(tmp_path, "lora", 3) == result
    lines = result_file(tmp_path, "lora", 3).read_text().splitlines()
    assert len(lines) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "expected the result of lora-seed3, got lora-seed4"),
        ({"seed": "3"}, "expected seed as int, got str"),
        ({"history": []}, "expected a history of evaluations"),
        ({"metrics": {}}, "expected the metrics mIoU, .* of val"),
        ({"samples": {"val": {"ids": []}}}, "expected samples.val with the lists ids, images"),
        ({"parameters": {"neck": -1}}, "expected numbers of parameters"),
    ],
)
def test_a_damaged_result_is_named(result, tmp_path, change, message):
    result.write(tmp_path)
    file = result_file(tmp_path, "lora", 3)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_result(tmp_path, "lora", 3)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("intersections", [10_000] * 10),
        ("unions", [1.5] * 10),
        ("predicted", [-1] * 10),
        ("images", [None] * 10),
        ("ids", ["same"] * 10),
        ("ids", ["too", "few"]),
    ],
)
def test_impossible_counts_are_refused(result, tmp_path, column, values):
    result.write(tmp_path)
    file = result_file(tmp_path, "lora", 3)
    content = json.loads(file.read_text())
    content["samples"]["val"][column] = values
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lora-seed3.json: expected samples.val"):
        read_result(tmp_path, "lora", 3)


def test_ids_of_samples():
    rows = datasets.Dataset.from_dict({"ref_id": [7, 9], "dataset": ["refcoco", "refcoco"]})
    assert sample_ids(rows, [0, 1, 1], [0, 0, 1]) == ["7", "9", "9.1"]
    mixed = datasets.Dataset.from_dict({"ref_id": [7, 7], "dataset": ["refcoco", "refcocog"]})
    assert sample_ids(mixed, [0, 1], [0, 0]) == ["refcoco/7", "refcocog/7"]
    repeated = datasets.Dataset.from_dict({"ref_id": [7, 7], "dataset": ["a", "a"]})
    assert sample_ids(repeated, [0, 1], [0, 0]) == ["7@0", "7@1"]


def test_settings_are_compared_field_by_field():
    settings = {"options": {"epochs": 4}, "model": {"image_size": 48}}
    assert first_difference(settings, {"model": {"image_size": 48}, "options": {"epochs": 4}}) is None
    assert first_difference(settings, {**settings, "options": {"epochs": 2}}) == "options.epochs: expected 4, got 2"
    assert first_difference(settings, {**settings, "options": {}}) == "options.epochs: expected 4, got the default"
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1}) != settings_hash({"a": 1, "b": 3})


def test_absolute_paths_are_shortened():
    options = {"data_root": "/home/me/data", "dataset": "refcoco", "nested": {"vision_model": "~/dino", "n": 3}}
    expected = {"data_root": ".../data", "dataset": "refcoco", "nested": {"vision_model": ".../dino", "n": 3}}
    assert without_paths(options) == expected


def test_a_field_that_a_later_version_adds_to_the_bridger_does_not_invalidate_results():
    new = {"model": {"bridger": {"dim": 64, "num_heads": 8}}}
    old = {"model": {"bridger": {"dim": 64}}}
    assert first_difference(comparable(new, []), comparable(old, [])) is None
    other = {"model": {"bridger": {"dim": 64, "num_heads": 4}}}
    assert first_difference(comparable(other, []), comparable(old, [])) is not None
    assert first_difference(comparable(new, []), {"model": {}}) is not None
