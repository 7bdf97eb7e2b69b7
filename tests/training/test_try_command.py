"""The last lines of a run: the best checkpoint, and a command that tries it."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from detris_peft import cli
from detris_peft.data import EvaluationSamples
from detris_peft.metrics import METRIC_NAMES
from detris_peft.training import train, trainer
from detris_peft.training.progress import Progress
from detris_peft.training.try_command import describe_checkpoint, find_example, predict_command
from tests.helpers.toy_run import arguments

RECORDS = [{"epoch": 1, "step": 4, "mIoU": 0.632}, {"epoch": 2, "step": 8, "mIoU": 0.6}]


pytestmark = pytest.mark.usefixtures("no_plots")


def test_the_printed_command_runs_after_each_end_of_a_run(model, processor, rows, tmp_path, monkeypatch, capsys):
    """As copied from the log: after early stopping, and again when the finished run is resumed."""
    folder = tmp_path / "it's a run"
    run = arguments(folder, epochs=3, early_stopping_patience=1)
    rows = rows[0].select(range(5)), rows[1]
    scores = {**dict.fromkeys(METRIC_NAMES, 0.25), "loss": 1.0}
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: dict(scores))
    train(model, processor, *rows, run)
    first = capsys.readouterr().out.splitlines()[-2:]
    history = train(model, processor, *rows, replace(run, resume="latest"))
    best, command = capsys.readouterr().out.splitlines()[-2:]
    assert [best, command] == first
    assert len(history) == 2  # stopped early
    assert best == f"best checkpoint: {folder}/best (epoch 1, step 1, mIoU 25.00)"

    label, _, line = command.partition(": ")
    assert label == "try it"
    words = shlex.split(line)
    assert words[:2] == ["detris", "predict"]
    assert words[-1] in rows[1][0]["sentences"]
    monkeypatch.chdir(tmp_path)
    cli.main(words[1:])
    assert (tmp_path / "prediction.png").is_file()


def describe(folder, rows, names, history=RECORDS):
    for name in names:
        (folder / name).mkdir()
    return describe_checkpoint(folder, Progress(history=list(history)), "mIoU", EvaluationSamples(rows))


def test_the_best_checkpoint_is_preferred_to_the_last_one(rows, tmp_path):
    line, command = describe(tmp_path, rows[1], ("last", "best"))
    assert line == f"best checkpoint: {tmp_path}/best (epoch 1, step 4, mIoU 63.20)"
    assert f"--checkpoint {tmp_path}/best " in command


def test_without_a_best_checkpoint_the_last_one_is_named(rows, tmp_path):
    assert describe(tmp_path, rows[1], ()) == []
    assert (
        describe(tmp_path, rows[1], ("last",))[0] == f"last checkpoint: {tmp_path}/last (epoch 2, step 8, mIoU 60.00)"
    )
    assert describe(tmp_path, rows[1], (), history=())[0] == f"last checkpoint: {tmp_path}/last"


@pytest.mark.parametrize("text", ['the dog\'s "left" $HOME; `ls`', "-x", "猫", "a\\b  c"])
def test_the_command_is_quoted_for_the_shell(text):
    words = shlex.split(predict_command(Path("-run/best"), "my photo.jpg", text))
    assert words[:5] == ["detris", "predict", "--checkpoint=-run/best", "--image", "my photo.jpg"]
    assert words[5:] in (["--text", text], [f"--text={text}"])
    assert (len(words) == 6) == text.startswith("-")


def test_the_example_is_the_first_sample_that_can_be_shown(rows, tmp_path):
    def change(row, index):
        if index == 0:
            row["image"] = {"path": str(tmp_path / "missing.jpg"), "bytes": None}
        elif index == 1:
            row["sentences"] = ["two\nlines"]
        elif index == 2:
            row["image"] = {"path": str(damaged), "bytes": None}
        return row

    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff")
    samples = EvaluationSamples(rows[1], skip_bad_rows=True)
    assert find_example(samples) == (samples.rows[0]["image"]["path"], rows[1][0]["sentences"][0])
    original = [samples.rows[i] for i in range(len(samples))]
    samples.rows = [change(dict(row), i) for i, row in enumerate(original)]
    assert find_example(samples) == (original[3]["image"]["path"], original[3]["sentences"][0])
    embedded = {"path": "a.jpg", "bytes": Path(original[0]["image"]["path"]).read_bytes()}
    samples.rows = [{**row, "image": embedded} for row in original]
    assert find_example(samples) == ("photo.jpg", "the man on the left")


def test_characters_that_the_output_cannot_encode_are_escaped(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    (tmp_path / "é").mkdir()
    assert rf"{tmp_path}/\xe9/best" in describe(tmp_path / "é", rows[1], ("best",))[0]
