"""Options of `detris train`: the recipe of the preset, and the precedence of its sources."""

from __future__ import annotations

import pytest

from detris_peft import presets
from detris_peft.cli.train import describe_recipe, parse_arguments
from detris_peft.training import TrainingArguments


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse the options in an empty folder, without examples/, as an installed wheel does."""
    monkeypatch.chdir(tmp_path)

    def parse(*arguments, config=None):
        if config is not None:
            (tmp_path / "options.yaml").write_text(config)
            arguments = (*arguments, "--config", "options.yaml")
        run, _, _, training = parse_arguments(arguments)
        return run, training

    return parse


def test_the_recipe_of_the_preset_is_used(parse):
    run, training = parse("--preset", "detris-l")
    assert run.preset == "detris-l"
    assert training == TrainingArguments(batch_size=64, learning_rate=2e-4, mixed_precision="bf16")


def test_the_default_preset_has_a_recipe_too(parse):
    run, training = parse()
    assert training == TrainingArguments(**presets.recipe(run.preset))


def test_the_recipe_of_the_preset_in_the_yaml_file_is_used(parse):
    run, training = parse(config="preset: detris-l")
    assert (run.preset, training.batch_size, training.learning_rate) == ("detris-l", 64, 2e-4)


def test_the_preset_of_the_command_line_wins_over_the_yaml_file(parse):
    run, training = parse("--preset", "tiny", config="preset: detris-l")
    assert (run.preset, training.batch_size, training.milestones) == ("tiny", 16, [3])


def test_command_line_wins_over_yaml_over_recipe_over_defaults(parse):
    config = "preset: detris-l\nbatch_size: 8\nlearning_rate: 1.0e-3\nepochs: 7"
    _, training = parse("--batch_size", "2", config=config)
    assert training.batch_size == 2  # also in the YAML file and in the recipe
    assert training.learning_rate == 1e-3  # also in the recipe
    assert training.mixed_precision == "bf16"  # recipe
    assert training.epochs == 7  # YAML file
    assert training.milestones == TrainingArguments().milestones


def test_the_values_used_of_the_recipe_are_described_in_one_line(parse):
    run, training = parse("--preset", "detris-l", "--batch_size", "16")
    line = describe_recipe(run.preset, training)
    assert line == "Recipe of detris-l: mixed_precision=bf16, learning_rate=0.0002 (overridden: batch_size)"
    run, training = parse("--preset", "detris-b", "--mixed_precision", "no")
    assert describe_recipe(run.preset, training) == "Recipe of detris-b: none (overridden: mixed_precision)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("preset: huge", "preset: expected one of .*, got 'huge'"),
        ("preset: [tiny]", "preset: expected one of"),
        ("batch_siz: 3", "expected names of options, got batch_siz; see --help"),
        ("- batch_size", "expected options such as `batch_size: 32`, got a list"),
        ("a: b: c", "expected YAML, got an error"),
        ("batch_size: 0", "batch_size: expected at least 1, got 0"),
    ],
)
def test_a_wrong_yaml_file_is_refused_in_one_line(parse, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(config=config)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file_is_named(parse):
    with pytest.raises(FileNotFoundError, match="expected a YAML file of options, got none"):
        parse("--config", "none.yaml")
