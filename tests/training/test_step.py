"""On a GPU, the loss of a batch is read after the next one has been started. Forced here on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.profiler import profile

from detris_peft.modeling import modeling_detris
from detris_peft.training import TrainingInterrupted, train
from detris_peft.training.distributed import SumOverRanks
from detris_peft.training.step import TrainingStep
from tests.helpers import toy_run
from tests.training.test_kills import weights
from tests.training.test_resume import stop_after

pytestmark = pytest.mark.usefixtures("no_plots")


def run(root, folder, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, 0.0)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0  # on a CPU it reads a seed
    return train(model, toy_run.load_processor(model.config, rows[0]), *rows, toy_run.arguments(folder, **changes))


def read_late(monkeypatch) -> None:
    create = TrainingStep.__init__

    def create_step(step, *args, **kwargs):
        create(step, *args, **kwargs)
        assert step.reads_late is False  # on a CPU
        step.reads_late = True

    monkeypatch.setattr(TrainingStep, "__init__", create_step)


def test_reading_late_does_not_change_a_run_also_if_it_is_interrupted(root, tmp_path, monkeypatch):
    options = {"eval_steps": 3, "save_steps": 2, "ema_decay": 0.5}
    expected = run(root, tmp_path / "plain", **options)
    read_late(monkeypatch)
    assert run(root, tmp_path / "late", **options) == expected
    for folder in ("last", "best"):
        assert weights(tmp_path / "late" / folder) == weights(tmp_path / "plain" / folder)

    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(TrainingInterrupted):
            run(root, tmp_path / "stopped", **options)
    assert run(root, tmp_path / "stopped", **options, resume="latest") == expected


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(root, tmp_path, monkeypatch):
    read_late(monkeypatch)
    real, calls = TrainingStep.run, []

    def run_step(step, batch, progress):
        calls.append(batch["ref_ids"])
        if len(calls) == 4:  # the last batch before an evaluation
            batch = {**batch, "labels": batch["labels"] * math.nan}
        return real(step, batch, progress)

    monkeypatch.setattr(TrainingStep, "run", run_step)
    with pytest.raises(ValueError, match=r"epoch 1, batch 4, step 4: expected a finite loss, got nan .*nothing was"):
        run(root, tmp_path / "run")
    assert not [*(tmp_path / "run").glob("checkpoints/*")]
    assert not (tmp_path / "run/last").exists()


def in_fused_adam(event) -> bool:
    """Return whether an operation is part of fused Adam, which reads its step counter in the version for CPUs."""
    while event is not None:
        if event.name == "aten::_fused_adam_":
            return True
        event = event.cpu_parent
    return False


def test_a_step_does_not_wait_for_the_device(root, tmp_path, monkeypatch):
    read_late(monkeypatch)
    monkeypatch.setattr(SumOverRanks, "read", lambda self: (1.0, False))
    # Values on a CPU are checked, which is free there.
    monkeypatch.setattr(modeling_detris, "check_tokens", lambda *_: None)
    real, waiting = TrainingStep.run, []

    def run_step(step, batch, progress):
        with profile() as profiler:
            result = real(step, batch, progress)
        events = [event for event in profiler.events() if not in_fused_adam(event)]
        assert any(event.name == "aten::addmm" for event in events)
        waits = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        waiting.extend(event.name for event in events if event.name in waits)
        return result

    monkeypatch.setattr(TrainingStep, "run", run_step)
    run(root, tmp_path / "run", epochs=1, ema_decay=0.9, max_grad_norm=1.0)
    assert waiting == []


def test_late_sums_on_the_cpu(root):
    AcceleratorState._reset_state(reset_partial_state=True)
    from accelerate import Accelerator

    total = SumOverRanks(Accelerator(cpu=True), torch.tensor(1.5), True)
    assert total.read() == (1.5, True)
