"""Training on a stream and with augmentation; resumed runs are bit-identical."""

from __future__ import annotations

import itertools

import datasets
import pytest
from accelerate.state import AcceleratorState

from detris_peft.data import load_mapped
from detris_peft.metrics import METRIC_NAMES
from detris_peft.training import TrainingInterrupted, train, trainer
from detris_peft.training.step import TrainingStep
from tests.helpers import toy_run
from tests.training.test_kills import weights
from tests.training.test_resume import stop_after

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def stream(root, tmp_path_factory):
    """Stream the training rows of the toy dataset from parquet files that contain the images."""
    folder = tmp_path_factory.mktemp("stream")
    rows = toy_run.load_rows(root)[0]
    for part in range(2):
        rows.shard(2, part).to_parquet(folder / f"train-{part:05d}-of-00002.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # default: 5 s after each read
        yield load_mapped(str(folder), "train", streaming=True)


def run(root, folder, train_rows=None, **changes):
    """Run `train` as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, 0.1)
    processor = toy_run.load_processor(model.config, rows[0])
    return train(model, processor, train_rows or rows[0], rows[1], toy_run.arguments(folder, **changes))


def compare_resumed(monkeypatch, train, folder):
    """Interrupt and resume a run in the middle of its second epoch, and compare it with an uninterrupted one."""
    uninterrupted = train(folder / "uninterrupted")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(TrainingInterrupted):
            train(folder / "stopped")
    assert train(folder / "stopped", resume="latest") == uninterrupted
    assert weights(folder / "stopped/last") == weights(folder / "uninterrupted/last")
    return uninterrupted


def test_a_resumed_run_on_a_stream_is_bit_identical(root, stream, tmp_path, monkeypatch):
    seen = []
    real = TrainingStep.run

    def run_step(step, batch, progress):
        seen.append(batch["ref_ids"])
        return real(step, batch, progress)

    monkeypatch.setattr(TrainingStep, "run", run_step)
    history = compare_resumed(monkeypatch, lambda folder, **changes: run(root, folder, stream, **changes), tmp_path)
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 4), (2, 8)]
    epochs = [[*itertools.chain(*seen[start : start + 4])] for start in (0, 4)]
    all_ids = sorted(toy_run.load_rows(root)[0]["ref_id"])
    assert [sorted(epoch) for epoch in epochs] == [all_ids, all_ids]
    assert epochs[0] != epochs[1]
    assert seen[8:] == seen[:8]  # both parts of the interrupted run


def test_a_resumed_run_with_augmentation_is_bit_identical(root, tmp_path, monkeypatch):
    history = compare_resumed(
        monkeypatch, lambda folder, **changes: run(root, folder, augment=True, **changes), tmp_path
    )
    assert history != run(root, tmp_path / "plain")


def test_a_stream_that_can_be_read_only_once_ends_the_run(root, stream, tmp_path, monkeypatch):
    """Later epochs would have no batches, and the run would never end."""
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {**dict.fromkeys(METRIC_NAMES, 0.5), "loss": 1.0})
    reads = []

    def is_first(row):
        reads.append(row)
        return len(reads) <= 20

    with pytest.raises(ValueError, match=r"expected a batch after batch 0 of epoch 2 of the stream, got none; check"):
        run(root, tmp_path / "run", stream.filter(is_first), epochs=3)


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 2), (False, 3)])
def test_the_last_incomplete_batch_of_a_stream_is_dropped_by_default(
    root, stream, tmp_path, monkeypatch, drop_last, steps
):
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {**dict.fromkeys(METRIC_NAMES, 0.5), "loss": 1.0})
    history = run(root, tmp_path / "run", stream, epochs=1, batch_size=9, drop_last=drop_last)
    assert history[0]["step"] == steps


def test_a_stream_smaller_than_a_batch_is_refused(root, stream, tmp_path):
    with pytest.raises(ValueError, match=r"of the stream, got none; .*smaller --batch_size .*--drop_last false"):
        run(root, tmp_path / "run", stream, batch_size=21)


def test_an_empty_stream_is_refused(root, stream, tmp_path):
    with pytest.raises(ValueError, match=r"expected a batch after batch 0 of epoch 1 of the stream, got none"):
        run(root, tmp_path / "run", stream.filter(lambda row: False))
