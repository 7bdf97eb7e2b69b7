"""`detris train --recipe`: which values it sets, what overrides them, and which follow from the data."""

from __future__ import annotations

import pytest

from detris_peft import presets
from detris_peft.cli.train import parse_arguments
from detris_peft.cli.train_options import describe_recipe, with_recipe
from detris_peft.cli.training_run import create_config
from detris_peft.training import TrainingArguments
from detris_peft.training.batching import GlobalBatches

FEW = presets.get_recipe("few-images")


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse options, with a YAML file if one is given."""
    monkeypatch.chdir(tmp_path)

    def parse(*words, config=None):
        if config is not None:
            (tmp_path / "options.yaml").write_text(config)
            words = (*words, "--config", "options.yaml")
        return parse_arguments([*words])

    return parse


def resolved(options, references=300, num_processes=1):
    return with_recipe(options, references, num_processes).training


def test_a_named_recipe_overrides_that_of_the_preset(parse):
    training = resolved(parse("--preset", "detris-l", "--recipe", "few-images"))
    assert training.batch_size == FEW.options["batch_size"] != presets.recipe("detris-l")["batch_size"]
    assert "precision" not in FEW.options
    assert training.precision == TrainingArguments(precision="auto").precision  # of the preset only


def test_command_line_wins_over_yaml_over_the_named_recipe(parse):
    config = "recipe: few-images\nbatch_size: 3\nlearning_rate: 0.5\nepochs: 7"
    training = resolved(parse("--batch_size", "2", config=config))
    assert (training.batch_size, training.learning_rate, training.epochs) == (2, 0.5, 7)
    assert training.drop_last is False
    assert training.milestones == FEW.milestones(7)


def test_milestones_that_are_given_are_kept(parse):
    training = resolved(parse("--recipe", "few-images", "--milestones", "3", "4"))
    assert training.milestones == [3, 4]
    assert training.epochs == FEW.epochs(300, 16)


@pytest.mark.parametrize("references", [40, 150, 300, 1000])
def test_the_epochs_give_about_the_target_number_of_steps(references):
    epochs = FEW.epochs(references, 16)
    steps = epochs * len(GlobalBatches(references, 16, drop_last=False))
    smallest, largest = FEW.epochs_range
    assert smallest <= epochs <= largest
    assert epochs in (smallest, largest) or steps == pytest.approx(FEW.steps, rel=0.1)
    assert FEW.milestones(epochs)[0] < epochs


def test_the_epochs_follow_the_samples_of_all_processes_per_step(parse):
    options = parse("--recipe", "few-images", "--batch_size", "4", "--gradient_accumulation_steps", "2")
    assert resolved(options, 1000, num_processes=2).epochs == FEW.epochs(1000, 16)


def test_without_a_recipe_nothing_follows_the_data(parse):
    options = parse("--preset", "tiny")
    assert with_recipe(options, 5, 1) is options
    assert options.training == TrainingArguments(**presets.recipe("tiny"))


def test_a_stream_needs_epochs(parse):
    with pytest.raises(ValueError, match=r"--recipe few-images: .*got a stream; remove --streaming, or set --epochs"):
        resolved(parse("--recipe", "few-images"), references=None)
    assert resolved(parse("--recipe", "few-images", "--epochs", "10"), references=None).epochs == 10


def test_the_values_are_described_in_one_line(parse):
    options = with_recipe(parse("--preset", "tiny", "--recipe", "few-images", "--batch_size", "8"), 300, 1)
    line = describe_recipe(options.run, options.training)
    assert line.startswith("Recipe of tiny with few-images: ")
    assert f"epochs={FEW.epochs(300, 8)}" in line
    assert f"milestones={FEW.milestones(options.training.epochs)}" in line
    assert line.endswith("(overridden: batch_size)")


@pytest.mark.parametrize("config", [None, "recipe: many"])
def test_an_unknown_recipe_is_refused(parse, config):
    words = [] if config else ["--recipe", "many"]
    with pytest.raises(ValueError, match=r"^recipe: expected one of few-images, got 'many'; choose one"):
        parse(*words, config=config)


def test_help_lists_the_recipes(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    help_text = "".join(capsys.readouterr().out.split())  # lines end within few-images
    assert f"few-images ({FEW.summary})".replace(" ", "") in help_text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("identity", "identity")),
        (["--text_adapter.init_weights", "paper"], ("identity", "paper")),
        (["--vision_adapter", "{peft_type: LORA, r: 4}"], (None, "identity")),
        (["--text_adapter", "none"], ("identity", None)),
    ],
)
def test_adapters_of_our_types_start_as_the_recipe_says(parse, tmp_path, words, expected):
    options = parse("--preset", "tiny", "--recipe", "few-images", *words)
    config, _ = create_config(options.run, options.backbones, tmp_path)
    adapters = (config.vision_adapter, config.text_adapter)
    assert tuple(getattr(adapter, "init_weights", None) for adapter in adapters) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"bce": 1.0, "dice": 0.5}),
        (["--loss_weights", "{bce: 1.0}"], {"bce": 1.0}),
    ],
)
def test_the_recipe_adds_the_dice_loss(parse, tmp_path, words, expected):
    options = parse("--preset", "tiny", "--recipe", "few-images", *words)
    config, _ = create_config(options.run, options.backbones, tmp_path)
    assert config.loss_weights == expected
