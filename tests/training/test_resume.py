"""Interrupting and resuming: bit-identical results, refused checkpoints, messages."""

from __future__ import annotations

import json
import os
import signal

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from detris_peft.manifest import write_manifest
from detris_peft.training import TrainingInterrupted, train, trainer
from detris_peft.training import checkpoints as checkpoints_module
from detris_peft.training.step import TrainingStep
from tests.helpers import toy_run
from tests.training.test_kills import weights


def run(root, folder, dropout=0.1, **changes):
    """Run `train` as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, dropout)
    return train(model, toy_run.load_processor(model.config, rows[0]), *rows, toy_run.arguments(folder, **changes))


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Send this process a signal during its step with this number (1-based)."""
    real, done = TrainingStep.run, []

    def run_step(step, batch, progress):
        done.append(batch)
        if len(done) == steps:
            os.kill(os.getpid(), number)
        return real(step, batch, progress)

    monkeypatch.setattr(TrainingStep, "run", run_step)


pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, signal.SIGTERM),
        ({}, signal.SIGINT),
        ({"gradient_accumulation_steps": 3, "precision": "bf16", "ema_decay": 0.8, "warmup_steps": 4}, signal.SIGTERM),
        ({"num_workers": 1, "max_grad_norm": 0.5, "gradient_checkpointing": True}, signal.SIGINT),
    ],
    ids=["plain-SIGTERM", "plain-SIGINT", "accumulated-bf16-SIGTERM", "workers-SIGINT"],
)
def test_a_run_resumed_after_a_signal_is_bit_identical(root, tmp_path, monkeypatch, options, number):
    uninterrupted = run(root, tmp_path / "uninterrupted", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, number)
        with pytest.raises(
            TrainingInterrupted, match=rf"Stopped by {number.name} after step .*--resume latest"
        ) as stop:
            run(root, tmp_path / "stopped", **options)
    assert stop.value.signum == number
    assert not (tmp_path / "stopped/last").exists()  # interrupted in the first epoch
    resumed = run(root, tmp_path / "stopped", resume="latest", **options)
    assert resumed == uninterrupted
    for name in ("last", "best"):
        assert weights(tmp_path / "stopped" / name) == weights(tmp_path / "uninterrupted" / name)


def test_a_signal_during_an_evaluation_interrupts_the_run(root, tmp_path, monkeypatch):
    uninterrupted = run(root, tmp_path / "uninterrupted")
    real = trainer.evaluate

    def evaluate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", evaluate)
        with pytest.raises(TrainingInterrupted, match="after step 4;"):
            run(root, tmp_path / "stopped")
    assert run(root, tmp_path / "stopped", resume="latest") == uninterrupted


def test_a_finished_run_can_be_resumed_for_more_epochs(root, tmp_path):
    uninterrupted = run(root, tmp_path / "uninterrupted", epochs=3)
    run(root, tmp_path / "run", epochs=2)
    assert run(root, tmp_path / "run", epochs=3, resume="latest") == uninterrupted
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert written == [{**record, "precision": "fp32"} for record in uninterrupted]


@pytest.mark.parametrize(("earlier", "precision"), [("no", "fp32"), ("bf16", "bf16")])
def test_a_run_of_an_earlier_version_is_resumed_in_its_precision(root, tmp_path, monkeypatch, earlier, precision):
    run(root, tmp_path / "run", epochs=1, precision=precision)
    (folder,) = (tmp_path / "run/checkpoints").iterdir()
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    fingerprint["mixed_precision"] = fingerprint.pop("precision").replace("fp32", "no")
    assert fingerprint["mixed_precision"] == earlier
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint))
    write_manifest(folder)
    resume = {"epochs": 2, "resume": "latest"}
    other = "fp32" if precision == "bf16" else "bf16"
    with pytest.raises(ValueError, match=f"expected precision {precision}, .*; pass --precision {precision}"):
        run(root, tmp_path / "run", precision=other, **resume)
    assert len(run(root, tmp_path / "run", precision=precision, **resume)) == 2


def test_the_newest_checkpoints_are_kept_and_hold_no_frozen_weight(root, tmp_path):
    run(root, tmp_path / "run", epochs=2, save_steps=1, save_total_limit=3, ema_decay=0.5)
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


def test_with_a_truncated_file_the_checkpoint_before_is_resumed(root, tmp_path, capsys):
    uninterrupted = run(root, tmp_path / "run", save_steps=1)
    last = tmp_path / "run/checkpoints/step-00000008"
    file = last / "optimizer.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    capsys.readouterr()
    assert run(root, tmp_path / "run", resume="latest", save_steps=1) == uninterrupted
    printed = capsys.readouterr().out
    assert f"{last}: optimizer.bin has {size // 2} bytes, expected {size}; falling back" in printed
    assert "Resuming from " in printed
    assert "step-00000007" in printed


def test_a_run_without_an_intact_checkpoint_is_refused(root, tmp_path):
    run(root, tmp_path / "run", epochs=1)
    for folder in (tmp_path / "run/checkpoints").iterdir():
        (folder / "progress.json").unlink()
    with pytest.raises(ValueError, match=r"No intact checkpoint found: .*progress.json is missing"):
        run(root, tmp_path / "run", epochs=1, resume="latest")


def test_a_checkpoint_of_a_different_run_is_refused_with_the_fields_that_differ(root, tmp_path):
    run(root, tmp_path / "run", epochs=1)
    with pytest.raises(
        ValueError, match=r"a different run \(learning_rate: expected 0\.5, got 0\.001; seed: expected 3, got 0\);"
    ):
        run(root, tmp_path / "run", learning_rate=0.5, seed=3, resume="latest")
    with pytest.raises(ValueError, match=r"model\.dropout: expected 0\.0, got 0\.1"):
        run(root, tmp_path / "run", dropout=0.0, resume="latest")


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(root, tmp_path):
    run(root, tmp_path / "run", epochs=1)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    (checkpoint / "fingerprint.json").unlink()  # the file had another name
    write_manifest(checkpoint)
    for resume in ("latest", str(checkpoint)):
        with pytest.raises(
            ValueError,
            match=r"expected fingerprint\.json, got none: a version .* before 0\.1\.0 .*finish .*--over",
        ) as refused:
            run(root, tmp_path / "run", epochs=2, resume=resume)
        assert "\n" not in str(refused.value)


def test_a_checkpoint_without_drop_last_was_trained_on_incomplete_batches(root, tmp_path):
    """Resuming it must not change the batches: the message says which option continues the run."""
    run(root, tmp_path / "run", epochs=1)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    fingerprint = json.loads((checkpoint / "fingerprint.json").read_text())
    del fingerprint["drop_last"], fingerprint["augment_mirror"]
    (checkpoint / "fingerprint.json").write_text(json.dumps(fingerprint))
    write_manifest(checkpoint)
    with pytest.raises(
        ValueError, match=r"a different run \(drop_last: expected True, got False\); set the options as"
    ):
        run(root, tmp_path / "run", epochs=2, resume="latest")
    assert len(run(root, tmp_path / "run", epochs=2, resume="latest", drop_last=False)) == 2


def test_a_checkpoint_of_something_else_is_refused(root, tmp_path):
    run(root, tmp_path / "run", epochs=1)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    for name, message in (
        ("progress.json", "progress.json: expected the position of a run, got other fields"),
        ("fingerprint.json", "fingerprint.json: expected an object of options, got list"),
    ):
        saved = (checkpoint / name).read_text()
        (checkpoint / name).write_text('{"epochs": 3}' if name == "progress.json" else "[1]")
        write_manifest(checkpoint)
        with pytest.raises(ValueError, match=message):
            run(root, tmp_path / "run", resume="latest")
        (checkpoint / name).write_text(saved)


def test_options_that_may_change_do_not_prevent_resuming(root, tmp_path):
    run(root, tmp_path / "run", epochs=1)
    changed = {"epochs": 2, "eval_batch_size": 2, "num_workers": 1, "save_steps": 3, "save_total_limit": 1}
    assert len(run(root, tmp_path / "run", resume="latest", on_nan="skip", **changed)) == 2


def test_latest_without_a_checkpoint_starts_from_scratch(root, tmp_path, capsys):
    assert len(run(root, tmp_path / "run", epochs=1, resume="latest")) == 1
    assert "yet; starting from scratch" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"expected latest or a checkpoint folder, got .*nowhere"):
        run(root, tmp_path / "run", epochs=1, resume="nowhere")


def test_a_folder_with_a_run_is_overwritten_only_on_request(root, tmp_path):
    run(root, tmp_path / "run", epochs=2)
    with pytest.raises(
        ValueError, match="got checkpoints, best, last of an earlier run; resume it with --resume latest"
    ):
        run(root, tmp_path / "run", epochs=1)
    assert len(run(root, tmp_path / "run", epochs=1, overwrite=True)) == 1
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]


def test_after_a_full_disk_the_checkpoint_before_can_be_resumed(root, tmp_path, monkeypatch):
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
            OSError,
            match=r"step-00000003: .* could not be written \(.*No space.*step-00000002 is intact.*--resume latest",
        ):
            run(root, tmp_path / "run", save_steps=1)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert run(root, tmp_path / "run", save_steps=1, resume="latest") == run(
        root, tmp_path / "uninterrupted", save_steps=1
    )


def test_an_output_dir_that_is_not_writable_is_refused_before_the_training(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run: expected a writable folder, got an error \(Not a directory\)"):
        run(root, tmp_path / "file/run")
