"""A run that is killed again and again, also in the middle of a save, ends as the one that never was."""

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
    "gradient_accumulation_steps": 2,
    "eval_steps": 4,
    "save_steps": 1,
    "ema_decay": 0.9,
    "warmup_steps": 3,
}


@pytest.fixture(scope="module")
def start():
    """Starts `run` in a process forked from a server that has imported everything, which saves seconds a start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.toy_run"])
    # The server does not get this process' sys.path, and says nothing if it cannot import.
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


def test_killed_twenty_times_the_run_ends_with_the_same_bits(start, root, tmp_path):
    whole = tmp_path / "whole"
    for _ in range(2):  # the first waits for the server's imports
        begin = time.monotonic()
        process = start(root, whole, overwrite_output_dir=True, **OPTIONS)
        process.join()
        duration = time.monotonic() - begin
        assert process.exitcode == 0

    rng = random.Random(0)
    kills = {"at a moment": 0, "in a save": 0}
    for number in range(20):  # runs, each killed until it comes through
        killed = tmp_path / f"killed_{number}"
        while True:
            way = min(kills, key=lambda way: kills[way])
            # A save writes about 20 files to the disk: at any of them, in one of the first saves.
            sync = rng.randint(1, 50) if way == "in a save" else 0
            process = start(root, killed, die_at_sync=sync, resume="latest", **OPTIONS)
            if way == "at a moment":
                process.join(rng.uniform(0.1, 0.6) * duration)
                process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills[way] += 1
        for name in ("last", "best"):
            assert weights(killed / name) == weights(whole / name)
        assert history(killed) == history(whole)
        if min(kills.values()) >= 11:
            break
    assert sum(kills.values()) >= 20, kills
    assert min(kills.values()) >= 10, kills


def test_a_signal_to_the_whole_group_saves_though_readers_get_it_too(start, root, tmp_path):
    """As a launcher or Slurm sends it: the processes that read images must not die of it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {**OPTIONS, "num_workers": 2, "epochs": 2}
    process = start(root, whole, **options)
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
    assert weights(stopped / "last") == weights(whole / "last")
