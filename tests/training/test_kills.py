"""A run that is killed many times, also in the middle of a save, is bit-identical to an uninterrupted run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import toy_run

OPTIONS = {
    "epochs": 4,
    "batch_size": 3,
    "drop_last": False,
    "gradient_accumulation_steps": 2,
    "eval_steps": 4,
    "save_steps": 1,
    "ema_decay": 0.9,
    "warmup_steps": 3,
}


@pytest.fixture(scope="module")
def start():
    """Start `toy_run.run` in a process forked from a server that has imported everything, which saves seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.toy_run"])
    # The server does not inherit sys.path, and ignores failed imports.
    folders = [str(Path(toy_run.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]

    def start(*args, **kwargs):
        process = context.Process(target=toy_run.run, args=args, kwargs=kwargs)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        yield start


def weights(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


def history(folder):
    return json.loads((folder / "metrics.json").read_text())["history"]


@pytest.mark.parametrize("count", [6, pytest.param(11, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_is_bit_identical(start, root, tmp_path, count):
    """At least `count` kills of each kind."""
    uninterrupted = tmp_path / "uninterrupted"
    for _ in range(2):  # the first start includes the server's imports
        begin = time.monotonic()
        process = start(root, uninterrupted, overwrite=True, **OPTIONS)
        process.join()
        duration = time.monotonic() - begin
        assert process.exitcode == 0

    rng = random.Random(0)
    kills = {"at a random time": 0, "in a save": 0}
    for number in range(20):  # runs, each killed until one start finishes
        killed = tmp_path / f"killed_{number}"
        while True:
            kind = min(kills, key=lambda kind: kills[kind])
            # A save syncs about 20 files: kill at any of them, in one of the first saves.
            sync = rng.randint(1, 50) if kind == "in a save" else 0
            process = start(root, killed, die_at_sync=sync, resume="latest", **OPTIONS)
            if kind == "at a random time":
                process.join(rng.uniform(0.1, 0.6) * duration)
                process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills[kind] += 1
        for name in ("last", "best"):
            assert weights(killed / name) == weights(uninterrupted / name)
        assert history(killed) == history(uninterrupted)
        if min(kills.values()) >= count:
            break
    assert min(kills.values()) >= count, kills


def test_a_signal_to_the_process_group_saves_the_run(start, root, tmp_path):
    """Launchers and Slurm signal the group: the DataLoader workers must survive the signal."""
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    options = {**OPTIONS, "num_workers": 2, "epochs": 2}
    process = start(root, uninterrupted, **options)
    process.join()
    process = start(root, stopped, own_group=True, **options)
    while not any(stopped.glob("checkpoints/step-*")):
        assert process.is_alive()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    process = start(root, stopped, resume="latest", **options)
    process.join()
    assert process.exitcode == 0
    assert weights(stopped / "last") == weights(uninterrupted / "last")
