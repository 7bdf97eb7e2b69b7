"""DataLoader workers: signals, and errors of workers that end without an exception of their own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time

import pytest
import torch
from torch.utils.data import DataLoader

from detris_peft.data.workers import explained_worker_errors, ignore_signals


@pytest.mark.parametrize(
    ("text", "cause", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", None, r"worker \(pid 7\) was killed .*'Killed'"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            None,
            r"worker \(pid 7\) was killed by the signal 'Bus error'; .*shared memory \(/dev/shm, in Docker --shm-size",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", None, r"worker \(pid 7, 8\) exited unexpectedly; "),
        (
            "DataLoader worker (pid(s) 7) exited unexpectedly",
            "DataLoader worker (pid 7) is killed by signal: Segmentation fault. ",
            "was killed by the signal 'Segmentation fault'",
        ),
    ],
)
def test_a_killed_worker_is_one_line_with_cause_and_fix(text, cause, message):
    error = RuntimeError(text)
    error.__cause__ = RuntimeError(cause) if cause else None
    with (
        pytest.raises(ChildProcessError, match=f"{message}.*lower --num_workers") as caught,
        explained_worker_errors(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_a_worker_without_memory_is_one_line():
    text = "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n ..."
    with (
        pytest.raises(MemoryError, match=r"worker ran out of memory; .*lower --num_workers"),
        explained_worker_errors(),
    ):
        raise MemoryError(text)


@pytest.mark.parametrize("error", [RuntimeError("something else"), MemoryError("something else"), ValueError("no")])
def test_other_errors_are_unchanged(error):
    with pytest.raises(type(error), match=str(error)) as caught, explained_worker_errors():
        raise error
    assert caught.value is error


class _Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("this sample is bad")


def _iterate(persistent):
    loader = DataLoader(
        _Failing(),
        num_workers=1,
        worker_init_fn=ignore_signals,
        persistent_workers=persistent,
        multiprocessing_context="fork",
    )
    next(iter(loader))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_process_whose_error_keeps_workers_alive_exits(persistent):
    """At exit, the traceback still refers to the loader, and multiprocessing ends and joins the workers."""
    process = multiprocessing.get_context("fork").Process(target=_iterate, args=[persistent])
    process.start()
    process.join(60)
    ended = process.exitcode is not None
    process.kill()
    assert ended
    assert process.exitcode == 1


def test_a_worker_ignores_signals_of_other_processes():
    context = multiprocessing.get_context("fork")
    events = context.Event(), context.Event()

    def work():
        ignore_signals(0)
        events[0].set()
        events[1].wait()
        os._exit(7)

    worker = context.Process(target=work)
    worker.start()
    assert events[0].wait(60)
    for number in ("INT", "TERM"):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    events[1].set()
    worker.join(60)
    assert worker.exitcode == 7


def test_a_worker_exits_when_its_parent_terminates_it():
    context = multiprocessing.get_context("fork")
    started = context.Event()

    def work():
        ignore_signals(0)
        started.set()
        time.sleep(600)

    worker = context.Process(target=work)
    worker.start()
    assert started.wait(60)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
