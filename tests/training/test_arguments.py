"""TrainingArguments: ranges, defaults and metadata of the options."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import HfArgumentParser

from detris_peft.training import TrainingArguments

OPTIONS = {option.name: option for option in fields(TrainingArguments)}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "at least 1, got 0"),
        ("batch_size", 0, "at least 1, got 0"),
        ("batch_size", 2.5, "int, got 2.5"),
        ("batch_size", True, "int, got True"),
        ("learning_rate", 0.0, "above 0, got 0.0"),
        ("learning_rate", float("nan"), "above 0, got nan"),
        ("gamma", None, "float, got None"),
        ("milestones", 35, "a list of int, got 35"),
        ("milestones", ["35"], r"a list of int, got \['35'\]"),
        ("num_workers", -1, "at least 0, got -1"),
        ("max_grad_norm", -1.0, "at least 0, got -1.0"),
        ("mixed_precision", "int3", "one of no, bf16, fp16, got 'int3'"),
        ("on_nan", "ignore", "one of stop, skip, got 'ignore'"),
        ("ema_decay", 1.0, "at least 0 and below 1, got 1.0"),
        ("save_total_limit", 0, "at least 1, got 0"),
        ("eval_steps", -1, "at least 0, got -1"),
        ("report_to", ["paper"], "one of tensorboard, wandb, trackio, got 'paper'"),
        ("report_to", "wandb", "a list of str, got 'wandb'"),
        ("resume", 3, "str, got 3"),
        ("augment", 1, "bool, got 1"),
        ("selection_metric", "IoU", "one of mIoU, oIoU, .*got 'IoU'"),
    ],
)
def test_a_value_outside_its_range_is_refused(option, value, message):
    with pytest.raises(ValueError, match=f"^{option}: expected {message}"):
        TrainingArguments(**{option: value})


def test_resume_and_overwrite_output_dir_exclude_each_other():
    with pytest.raises(ValueError, match="expected resume or overwrite_output_dir, got both"):
        TrainingArguments(resume="latest", overwrite_output_dir=True)


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"mixed_precision: expected bf16 or no .*got 'fp16'"):
        TrainingArguments(mixed_precision="fp16")


def test_changing_a_list_does_not_change_the_defaults():
    lists = [name for name in OPTIONS if isinstance(getattr(TrainingArguments(), name), list)]
    assert lists == ["milestones", "report_to"]
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
        "learning_rate",
        "warmup_steps",
        "milestones",
        "gamma",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "mixed_precision",
        "ema_decay",
        "seed",
        "augment",
        "selection_metric",
    ]


def test_a_plain_parser_shows_help_and_range_and_parses_each_kind_of_option():
    parser = HfArgumentParser(TrainingArguments)
    shown = " ".join(parser.format_help().split())
    assert "training batch size per process [at least 1] (default: 32)" in shown
    assert "[one of no, bf16, fp16]" in shown
    command = "--epochs 3 --learning_rate 0.5 --milestones 1 2 --augment --report_to wandb --resume latest"
    (arguments,) = parser.parse_args_into_dataclasses(command.split())
    expected = {"epochs": 3, "learning_rate": 0.5, "milestones": [1, 2], "augment": True, "report_to": ["wandb"]}
    assert arguments == TrainingArguments(**expected, resume="latest")
