"""Errors of DataLoader workers that end without an exception of their own."""

from __future__ import annotations

import pytest

from detris_peft.data.workers import explained_worker_errors


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
