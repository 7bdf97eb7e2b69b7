"""TrainingArguments: ranges, defaults and metadata of the options."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser

from detris_peft.cli.train import parse_arguments
from detris_peft.training import TrainingArguments
from detris_peft.training.launcher import (
    describe_ignored_launcher_settings,
    launcher_settings,
    parse_launch_command,
)

OPTIONS = {option.name: option for option in fields(TrainingArguments)}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "at least 1, got 0"),
        ("batch_size", 0, "at least 1, got 0"),
        ("batch_size", 2.5, "int, got 2.5"),
        ("batch_size", True, "int, got True"),
        ("learning_rate", 0.0, "above 0 and finite, got 0.0"),
        ("learning_rate", float("nan"), "above 0 and finite, got nan"),
        ("learning_rate", float("inf"), "above 0 and finite, got inf"),
        ("seed", -1, r"at least 0 and below 2\^31, got -1"),
        ("output_dir", " ", "a text that is not empty, got ' '"),
        ("resume", "", "a text that is not empty, got ''"),
        ("drop_last", 1, "bool, got 1"),
        ("gamma", None, "float, got None"),
        ("milestones", 35, r"list\[int\], got 35"),
        ("milestones", ["35"], r"list\[int\], got \['35'\]"),
        ("num_workers", -1, "at least 0, got -1"),
        ("max_grad_norm", -1.0, "at least 0, got -1.0"),
        ("precision", "int3", "one of auto, fp32, bf16, fp16, got 'int3'"),
        ("on_nan", "ignore", "one of stop, skip, got 'ignore'"),
        ("ema_decay", 1.0, "at least 0 and below 1, got 1.0"),
        ("distill_image_ratio", 1.0, "at least 0 and below 1, got 1.0"),
        ("distill_token_ratio", -0.1, "at least 0 and below 1, got -0.1"),
        ("distill_block_size", 0, "at least 1, got 0"),
        ("distill_mask_token", " ", "a text that is not empty, got ' '"),
        ("save_total_limit", 0, "at least 1, got 0"),
        ("eval_steps", -1, "at least 0, got -1"),
        ("report_to", ["paper"], "one of tensorboard, wandb, trackio, got 'paper'"),
        ("report_to", "wandb", r"list\[str\], got 'wandb'"),
        ("resume", 3, "str or None, got 3"),
        ("augment", 1, "bool, got 1"),
        ("selection_metric", "IoU", "one of mIoU, oIoU, .*got 'IoU'"),
    ],
)
def test_a_value_outside_its_range_is_refused(option, value, message):
    with pytest.raises(ValueError, match=f"^{option}: expected {message}"):
        TrainingArguments(**{option: value})


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(ValueError, match="expected resume or overwrite, got both"):
        TrainingArguments(resume="latest", overwrite=True)


def test_output_dir_may_be_a_path():
    assert TrainingArguments(output_dir=Path("runs") / "a").output_dir == str(Path("runs/a"))


def test_a_tuple_is_stored_as_a_list():
    assert TrainingArguments(milestones=(2, 3)).milestones == [2, 3]


@pytest.fixture
def launcher(monkeypatch):
    """Set the environment variables of `accelerate launch`."""

    def launch(precision, accumulation=None):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        if accumulation is not None:
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", accumulation)

    return launch


def test_settings_of_accelerate_launch_are_used_unless_an_option_is_set(launcher):
    launcher("bf16", "2")
    arguments = TrainingArguments()
    assert (arguments.precision, arguments.gradient_accumulation_steps) == ("bf16", 2)
    assert describe_ignored_launcher_settings(precision="bf16", gradient_accumulation_steps=2) == []
    arguments = TrainingArguments(precision="fp32", gradient_accumulation_steps=3)
    assert (arguments.precision, arguments.gradient_accumulation_steps) == ("fp32", 3)
    lines = describe_ignored_launcher_settings(precision="fp32", gradient_accumulation_steps=3)
    assert lines == [
        "precision: fp32 is used, as set by the option or the preset; mixed_precision bf16 of accelerate launch is "
        "ignored.",
        "gradient_accumulation_steps: 3 is used, as set by the option or the preset; gradient_accumulation_steps 2 of "
        "accelerate launch is ignored.",
    ]


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        (["python", "/venv/bin/accelerate", "launch", "--gradient_accumulation_steps", "2", "train.py"], 2),
        (["accelerate-launch", "--mixed_precision=bf16", "--gradient-accumulation-steps=3", "train.py"], 3),
        (["python", "-m", "accelerate.commands.launch", "train.py", "--gradient_accumulation_steps", "4"], None),
        (["python", "train.py", "--gradient_accumulation_steps", "5"], None),
        ([], None),
    ],
)
def test_the_command_line_of_accelerate_launch_is_read(command, steps, monkeypatch):
    """accelerate passes gradient_accumulation_steps to the script only with DeepSpeed."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", raising=False)
    assert parse_launch_command(command).get("gradient_accumulation_steps") == steps
    parents = [SimpleNamespace(cmdline=lambda: ["bash"]), SimpleNamespace(cmdline=lambda: command)]
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parents=lambda: parents))
    assert TrainingArguments().gradient_accumulation_steps == (steps or 1)


def test_without_settings_of_accelerate_launch_the_defaults_are_used(launcher):
    launcher("no")  # also sent if the user set nothing
    arguments = TrainingArguments()
    assert (arguments.precision, arguments.gradient_accumulation_steps) == ("fp32", 1)
    assert launcher_settings() == {}


@pytest.mark.parametrize(
    ("set_by_launcher", "words", "expected"),
    [
        ("no", [], "fp32"),  # auto, the preset's recipe
        ("fp16", ["--precision", "fp32"], "fp32"),
        ("bf16", ["--preset", "tiny"], "bf16"),
    ],
)
def test_precedence_of_option_then_accelerate_launch_then_recipe(launcher, set_by_launcher, words, expected):
    launcher(set_by_launcher)
    assert parse_arguments(words)[-1].precision == expected


def test_the_earlier_name_of_overwrite_is_accepted_in_yaml_files(tmp_path):
    (tmp_path / "options.yaml").write_text("overwrite_output_dir: true\n")
    assert parse_arguments(["--config", str(tmp_path / "options.yaml")])[-1].overwrite


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("fp8", "2"), "mixed_precision: expected one of no, bf16, fp16, got 'fp8' of accelerate launch .*change it"),
        (("no", "auto"), "gradient_accumulation_steps: expected at least 1, got 'auto' of accelerate launch"),
        (("no", "0"), "gradient_accumulation_steps: expected at least 1, got 0 of accelerate launch"),
    ],
)
def test_settings_of_accelerate_launch_that_are_not_supported_are_refused(launcher, settings, message):
    launcher(*settings)
    with pytest.raises(ValueError, match=message):
        TrainingArguments()


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"precision: expected auto, fp32 or bf16 on a CPU, got 'fp16'"):
        TrainingArguments(precision="fp16")


def test_auto_is_replaced_by_the_precision_of_the_device(monkeypatch):
    assert TrainingArguments(precision="auto").precision == "fp32"
    monkeypatch.setattr("detris_peft.precision.cpu_computes_bf16", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert TrainingArguments(precision="auto").precision == "bf16"


def test_the_earlier_name_of_precision_is_refused_with_the_new_one():
    with pytest.raises(TypeError, match=r"which replaces mixed_precision, .*; use precision: fp32"):
        TrainingArguments(mixed_precision="no")


def test_changing_a_list_does_not_change_the_defaults():
    lists = [name for name in OPTIONS if isinstance(getattr(TrainingArguments(), name), list)]
    assert lists == ["milestones", "report_to", "hub_benchmark"]
    for name in lists:
        before = list(getattr(TrainingArguments(), name))
        getattr(TrainingArguments(), name).append(40)
        assert getattr(TrainingArguments(), name) == before


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_declares_its_help_and_whether_it_may_change_on_resume(name):
    metadata = OPTIONS[name].metadata
    assert metadata["help"]
    assert isinstance(metadata["may_change_on_resume"], bool)
    if metadata["range"]:
        assert f"[{metadata['range'].description}]" in metadata["help"]


def test_the_options_that_may_change_on_resume():
    """None of them changes what a training step computes. A new option is compared unless it declares otherwise."""
    compared = [name for name, option in OPTIONS.items() if not option.metadata["may_change_on_resume"]]
    assert compared == [
        "batch_size",
        "drop_last",
        "learning_rate",
        "backbone_learning_rate",
        "warmup_steps",
        "milestones",
        "gamma",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "precision",
        "ema_decay",
        "seed",
        "augment",
        "augment_mirror",
        "no_target_ratio",
        "mosaic_ratio",
        "distill_masked_view",
        "distill_block_size",
        "distill_image_ratio",
        "distill_token_ratio",
        "distill_mask_token",
        "selection_metric",
    ]


def test_a_plain_parser_shows_help_and_range_and_parses_each_kind_of_option():
    parser = HfArgumentParser(TrainingArguments)
    shown = " ".join(parser.format_help().split())
    assert "training batch size per process [at least 1] (default: 32)" in shown
    assert "[one of auto, fp32, bf16, fp16]" in shown
    command = "--epochs 3 --learning_rate 0.5 --milestones 1 2 --augment --report_to wandb --resume latest"
    (arguments,) = parser.parse_args_into_dataclasses(command.split())
    assert (arguments.drop_last, arguments.augment_mirror) == (True, True)
    switches = ["--overwrite_output_dir", "--drop_last", "false", "--augment_mirror", "false"]
    (switched,) = parser.parse_args_into_dataclasses(switches)
    assert (switched.overwrite, switched.drop_last, switched.augment_mirror) == (True, False, False)
    expected = {"epochs": 3, "learning_rate": 0.5, "milestones": [1, 2], "augment": True, "report_to": ["wandb"]}
    assert arguments == TrainingArguments(**expected, resume="latest")
