"""Stopping and going on: the same bits, what is refused, what is said."""

from __future__ import annotations

import json
import os
import signal

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from detris_peft.training import TrainingInterrupted, train, trainer
from detris_peft.training import checkpoints as checkpoints_module
from tests.helpers import toy_run
from tests.training.test_kills import weights


def go(root, folder, dropout=0.1, **changes):
    """A whole `train` in this process, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, dropout)
    return train(model, toy_run.load_processor(model.config, rows[0]), *rows, toy_run.arguments(folder, **changes))


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Send this process a signal while its step of that number runs."""
    real, done = trainer._Run._step, []

    def step(run, batch):
        done.append(batch)
        if len(done) == steps:
            os.kill(os.getpid(), number)
        return real(run, batch)

    monkeypatch.setattr(trainer._Run, "_step", step)


@pytest.fixture(scope="module")
def _imageless():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_curves", "plot_predictions"):
            patch.setattr(trainer, name, lambda *_: None)
        yield


pytestmark = pytest.mark.usefixtures("_imageless")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3, "mixed_precision": "bf16", "ema_decay": 0.8, "warmup_steps": 4},
        {"num_workers": 1, "max_grad_norm": 0.5, "gradient_checkpointing": True},
    ],
    ids=["plain", "accumulated-bf16", "workers"],
)
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bits(root, tmp_path, monkeypatch, options, number):
    whole = go(root, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, number)
        with pytest.raises(
            TrainingInterrupted, match=rf"Stopped by {number.name} after step .*--resume latest"
        ) as stop:
            go(root, tmp_path / "stopped", **options)
    assert stop.value.signum == number
    assert not (tmp_path / "stopped/last").exists()  # in the first epoch
    resumed = go(root, tmp_path / "stopped", resume="latest", **options)
    assert resumed == whole
    for name in ("last", "best"):
        assert weights(tmp_path / "stopped" / name) == weights(tmp_path / "whole" / name)


def test_a_signal_during_an_evaluation_is_heard(root, tmp_path, monkeypatch):
    whole = go(root, tmp_path / "whole")
    real = trainer.evaluate

    def evaluate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", evaluate)
        with pytest.raises(TrainingInterrupted, match="after step 4;"):
            go(root, tmp_path / "stopped")
    assert go(root, tmp_path / "stopped", resume="latest") == whole


def test_an_epoch_more_goes_on_from_the_last(root, tmp_path):
    whole = go(root, tmp_path / "whole", epochs=3)
    go(root, tmp_path / "run", epochs=2)
    assert go(root, tmp_path / "run", epochs=3, resume="latest") == whole
    assert [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == whole


def test_the_last_few_checkpoints_are_kept_and_hold_no_frozen_weight(root, tmp_path):
    go(root, tmp_path / "run", epochs=2, save_steps=1, save_total_limit=3, ema_decay=0.5)
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007", "step-00000008"]
    folder = tmp_path / "run/checkpoints/step-00000008"
    model = toy_run.load_model(root)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    saved = set(load_file(folder / "trainable.safetensors"))
    assert trained <= saved
    assert not saved & frozen
    assert set(load_file(folder / "ema.safetensors")) == trained


def test_a_truncated_file_falls_back_to_the_checkpoint_before(root, tmp_path, capsys):
    whole = go(root, tmp_path / "run", save_steps=1)
    last = tmp_path / "run/checkpoints/step-00000008"
    file = last / "optimizer.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    capsys.readouterr()
    assert go(root, tmp_path / "run", resume="latest", save_steps=1) == whole
    said = capsys.readouterr().out
    assert f"{last}: optimizer.bin has {size // 2} bytes, not {size}; falling back" in said
    assert "Going on from " in said
    assert "step-00000007" in said


def test_no_whole_checkpoint_is_said(root, tmp_path):
    go(root, tmp_path / "run", epochs=1)
    for folder in (tmp_path / "run/checkpoints").iterdir():
        (folder / "progress.json").unlink()
    with pytest.raises(ValueError, match=r"No checkpoint is whole: .*progress.json is missing"):
        go(root, tmp_path / "run", epochs=1, resume="latest")


def test_a_checkpoint_of_another_run_is_refused_by_field(root, tmp_path):
    go(root, tmp_path / "run", epochs=1)
    with pytest.raises(
        ValueError, match=r"of another run: learning_rate is 0\.5 here and 0\.001 there; seed is 3 here"
    ):
        go(root, tmp_path / "run", learning_rate=0.5, seed=3, resume="latest")
    with pytest.raises(ValueError, match=r"model\.dropout is 0\.0 here and 0\.1 there"):
        go(root, tmp_path / "run", dropout=0.0, resume="latest")


def test_latest_of_nothing_begins_anew_and_says_so(root, tmp_path, capsys):
    assert len(go(root, tmp_path / "run", epochs=1, resume="latest")) == 1
    assert "yet: beginning anew" in capsys.readouterr().out
    with pytest.raises(ValueError, match="There is no checkpoint nowhere"):
        go(root, tmp_path / "run", epochs=1, resume="nowhere")


def test_a_folder_with_a_run_is_not_overwritten_unasked(root, tmp_path):
    go(root, tmp_path / "run", epochs=2)
    with pytest.raises(
        ValueError, match="holds checkpoints, best, last of an earlier run: go on with --resume latest"
    ):
        go(root, tmp_path / "run", epochs=1)
    assert len(go(root, tmp_path / "run", epochs=1, overwrite_output_dir=True)) == 1
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(root, tmp_path, monkeypatch):
    real = checkpoints_module.save_file
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "save_file", full)
        with pytest.raises(
            OSError, match=r"step-00000003 could not be written \(.*No space.*step-00000002 is whole.*--resume latest"
        ):
            go(root, tmp_path / "run", save_steps=1)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert go(root, tmp_path / "run", save_steps=1, resume="latest") == go(root, tmp_path / "whole", save_steps=1)


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be written to \(Not a directory\)"):
        go(root, tmp_path / "file/run")
