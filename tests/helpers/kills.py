"""Kill a process at a chosen file operation, to test that no kill leaves a half-written result.

A test calls `run_killed(action, at)` for `at` = 1, 2, ... until it returns False: the action has fewer operations.
After every kill it checks that the folder is old or new, and that the next command works.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable

# They change a folder, or make a change durable. `Path.rename`, `shutil.rmtree` and others call these functions.
OPERATIONS = ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "fsync")


def run_killed(action: Callable[[], object] | str, at: int, operations: tuple[str, ...] = OPERATIONS) -> bool:
    """Run an action in another process, which is killed (SIGKILL) instead of its `at`-th file operation.

    Args:
        action: a function, which runs in a forked process (fast; it must not need threads of this process, such as
            those of PyArrow or OpenMP), or Python code, which runs in a new one.
        at: the operation to die at, counted from 1.
        operations: names of functions of `os` to count.

    Returns:
        Whether the process was killed; False if it completed before.

    Raises:
        AssertionError: the action failed for another reason.
    """
    if isinstance(action, str):
        preamble = f"from tests.helpers.kills import kill_at; kill_at({at}, {operations!r})\n"
        status = subprocess.run([sys.executable, "-c", preamble + action], check=False).returncode
    else:
        pid = os.fork()
        if not pid:
            _run_and_exit(action, at, operations)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the action failed with status {status}"
    return status != 0


def kill_at(at: int, operations: tuple[str, ...] = OPERATIONS) -> None:
    """Kill this process at its `at`-th file operation from now on."""
    count = 0

    def counted(operation: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in operations:
        setattr(os, name, counted(getattr(os, name)))


def _run_and_exit(action: Callable[[], object], at: int, operations: tuple[str, ...]) -> None:
    try:
        kill_at(at, operations)
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
