"""Training on a stream, and with augmentation: each goes on from where it was stopped with the same bits."""

from __future__ import annotations

import itertools

import datasets
import pytest
from accelerate.state import AcceleratorState

from detris_peft.data import load_mapped
from detris_peft.training import TrainingInterrupted, train, trainer
from tests.helpers import toy_run
from tests.training.test_kills import weights
from tests.training.test_resume import stop_after


@pytest.fixture(scope="module")
def stream(root, tmp_path_factory):
    """The toys' training rows as parquet files with images within, streamed."""
    folder = tmp_path_factory.mktemp("stream")
    rows = toy_run.load_rows(root)[0]
    for part in range(2):
        rows.shard(2, part).to_parquet(folder / f"train-{part:05d}-of-00002.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of each reading
        yield load_mapped(str(folder), "train", streaming=True)


def go(root, folder, train_rows=None, **changes):
    """A whole `train` in this process, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, 0.1)
    processor = toy_run.load_processor(model.config, rows[0])
    return train(model, processor, train_rows or rows[0], rows[1], toy_run.arguments(folder, **changes))


def ends_alike(monkeypatch, run, folder):
    """Stop in the middle of the second epoch of four steps, go on, and compare with what was never stopped."""
    for name in ("plot_curves", "plot_predictions"):
        monkeypatch.setattr(trainer, name, lambda *_: None)
    whole = run(folder / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(TrainingInterrupted):
            run(folder / "stopped")
    assert run(folder / "stopped", resume="latest") == whole
    assert weights(folder / "stopped/last") == weights(folder / "whole/last")
    return whole


def test_a_stream_trains_and_goes_on_with_the_same_bits(root, stream, tmp_path, monkeypatch):
    seen = []
    real = trainer._Run._step

    def step(run, batch):
        seen.append(batch["ref_ids"])
        return real(run, batch)

    monkeypatch.setattr(trainer._Run, "_step", step)
    history = ends_alike(monkeypatch, lambda folder, **more: go(root, folder, stream, **more), tmp_path)
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 4), (2, 8)]
    epochs = [[*itertools.chain(*seen[start : start + 4])] for start in (0, 4)]
    everything = sorted(toy_run.load_rows(root)[0]["ref_id"])
    assert [sorted(epoch) for epoch in epochs] == [everything, everything]
    assert epochs[0] != epochs[1]
    assert seen[8:] == seen[:8]  # the stopped run's two parts together


def test_augmented_training_goes_on_with_the_same_bits(root, tmp_path, monkeypatch):
    history = ends_alike(monkeypatch, lambda folder, **more: go(root, folder, augment=True, **more), tmp_path)
    assert history != go(root, tmp_path / "plain")


def test_a_stream_without_a_row_is_said(root, stream, tmp_path):
    with pytest.raises(ValueError, match="ended before it gave a batch"):
        go(root, tmp_path / "run", stream.filter(lambda row: False))
