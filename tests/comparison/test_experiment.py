"""Experiment files: shipped ones, precedence of options, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from detris_peft import presets
from detris_peft.cli.compare import _check, _resolve
from detris_peft.cli.training_run import create_config
from detris_peft.comparison import read_experiment, shipped_experiments
from detris_peft.modeling.parameter_counts import count_parameters, meta_model
from tests.comparison.made_results import make_experiment

EXPERIMENTS = Path(__file__).parents[2] / "docs/experiments"


@pytest.mark.parametrize("name", shipped_experiments())
def test_a_shipped_experiment_has_valid_options(name):
    experiment = read_experiment(name, _check)
    resolved = _resolve(experiment)
    assert experiment.seeds == [0, 1, 2]
    if not name.endswith("small"):
        assert {arm: options.run.preset for arm, options in resolved.items() if not options.run.preset} == {}
        assert all(options.training.epochs == 50 for options in resolved.values())
        assert all(options.training.learning_rate == 1e-4 for options in resolved.values())
    assert read_experiment(f"{name}.yaml", _check) == experiment


def test_a_folder_with_the_name_of_a_shipped_experiment_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = read_experiment("table3-small", _check)
    (tmp_path / "table3-small").mkdir()
    assert read_experiment("table3-small", _check) == expected
    (tmp_path / "table3-small").rmdir()
    (tmp_path / "table3-small").write_text("[]")
    with pytest.raises(ValueError, match="table3-small: expected an experiment"):
        read_experiment("table3-small", _check)


def test_table_2_has_every_row_and_the_variants_of_the_learning_rate():
    resolved = _resolve(read_experiment("table2", _check))
    rows = {options.run.preset for options in resolved.values()}
    assert rows == {name for name in presets.list_presets() if name.startswith("table2")} | {
        "detris-b",
        "detris-b-half",
    }
    rates = {arm: o.training.backbone_learning_rate for arm, o in resolved.items()}
    assert {arm: rate for arm, rate in rates.items() if rate} == {"full-lr1e-5": 1e-5, "lora-lr5e-4": 5e-4}


def test_the_small_adapters_have_about_as_many_parameters(tmp_path):
    resolved = _resolve(read_experiment("table2-small", _check))
    counts = {}
    for arm, options in resolved.items():
        config, _ = create_config(options.run, options.backbones, tmp_path)
        counts[arm] = count_parameters(meta_model(config)).backbone_update
    assert counts.pop("fixed") == 0
    assert counts.pop("detris-half") == 38_256 / 2
    assert counts.pop("full") == counts.pop("full-lr2e-4") > 300_000
    assert all(abs(count / 38_256 - 1) < 0.06 for count in counts.values()), counts


def test_the_arms_beyond_the_paper_have_equal_parameters_and_change_what_their_name_says(tmp_path):
    resolved = _resolve(read_experiment("plus-small", _check))
    assert [*resolved] == ["base", "zero", "dice", "zero-dice", "scale", "distill", "no-target", "mosaic", "all"]
    configs = {arm: create_config(o.run, o.backbones, tmp_path)[0] for arm, o in resolved.items()}
    adapters = {arm: (config.vision_adapter, config.text_adapter) for arm, config in configs.items()}
    base = adapters["base"]
    for arm, pair in adapters.items():
        assert {adapter.init_weights for adapter in pair} == {
            "identity" if arm in ("zero", "zero-dice", "all") else "paper"
        }
        assert {adapter.learn_scale for adapter in pair} == {arm in ("scale", "all")}
        for adapter, published in zip(pair, base, strict=True):
            changed = {"init_weights": published.init_weights, "learn_scale": published.learn_scale}
            assert {**adapter.to_dict(), **changed} == published.to_dict()  # dim and blocks of the preset stay
    with_dice = {arm for arm, config in configs.items() if config.loss_weights == {"bce": 1.0, "dice": 0.5}}
    assert with_dice == {"dice", "zero-dice", "all"}
    training = {arm: options.training for arm, options in resolved.items()}
    assert {arm for arm, options in training.items() if options.distill_masked_view} == {"distill", "all"}
    assert {arm for arm, options in training.items() if options.no_target_ratio == 0.15} == {"no-target", "all"}
    assert {arm for arm, options in training.items() if options.mosaic_ratio == 0.15} == {"mosaic", "all"}
    counts = {arm: count_parameters(meta_model(config)).trained for arm, config in configs.items()}
    added = {arm: count - counts["base"] for arm, count in counts.items()}
    assert added == {arm: 4 if arm in ("scale", "all") else 0 for arm in counts}  # one per adapter


def test_the_experiments_with_pretrained_encoders_have_the_arms_of_plus_small_and_controls():
    photos = read_experiment(str(EXPERIMENTS / "photos-plus.yaml"), _check)
    assert {options.run.preset for options in _resolve(photos).values()} == {"detris-b"}
    arms = read_experiment("plus-small", _check).arms
    without = {"vision_adapter": None, "text_adapter": None}
    assert photos.arms == {**arms, "none": without, "none-dice": {**without, **arms["dice"]}}
    few = read_experiment(str(EXPERIMENTS / "few-references.yaml"), _check)
    assert few.arms == {name: photos.arms[name] for name in few.arms}
    assert {options.run.preset for options in _resolve(few).values()} == {"detris-b"}


def test_an_arm_overrides_common_options_and_replaces_adapters_completely():
    common = {"epochs": 4, "vision_adapter.dim": 8, "vision_adapter.scale": 0.1, "text_adapter": None}
    arms = {"a": {}, "b": {"epochs": 2, "vision_adapter": {"peft_type": "LORA"}}, "c": {"vision_adapter.dim": 16}}
    experiment = make_experiment("a", common=common, arms=arms)
    assert experiment.options("a") == common
    assert experiment.options("b") == {"epochs": 2, "vision_adapter": {"peft_type": "LORA"}, "text_adapter": None}
    assert experiment.options("c") == {"epochs": 4, "vision_adapter.dim": 16, "text_adapter": None}
    changed = experiment.with_common({"epochs": 9, "dataset": "mine"})
    assert (changed.options("a")["epochs"], changed.options("b")["epochs"]) == (9, 2)
    assert changed.options("b")["dataset"] == "mine"


def test_runs_are_ordered_by_seed_and_can_be_restricted():
    experiment = make_experiment("a", "b", seeds=[2, 0])
    assert experiment.select(None, None) == [("a", 2), ("b", 2), ("a", 0), ("b", 0)]
    assert experiment.select(["b"], [0]) == [("b", 0)]
    with pytest.raises(ValueError, match="--only: expected some of a, b, got c"):
        experiment.select(["c"], None)
    with pytest.raises(ValueError, match="--seeds: expected some of 2, 0, got 1"):
        experiment.select(None, [1])
