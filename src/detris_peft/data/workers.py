"""DataLoader workers: signals, values shared with them, and messages for workers that were killed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def ignore_signals(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a DataLoader worker, except from its parent; pass it as `worker_init_fn`.

    These signals are sent to the entire process group. PyTorch's default handler would terminate the worker on
    SIGTERM, which in turn would terminate the parent process while it is saving. With SIGTERM from the parent itself,
    multiprocessing ends workers that still run when the parent exits, for example those that a traceback keeps alive,
    and then waits for them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS does not have it
        # Only this function tells who sent a signal. It receives a signal that is blocked, even if it is ignored. A
        # thread that was started before and does not block it may take the signal first.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_on_sigterm_from, args=[parent.pid], daemon=True).start()


def _exit_on_sigterm_from(pid: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != pid:
        pass
    os._exit(0)


def shared_integer() -> torch.Tensor:
    """Return a zero in shared memory: a later change reaches workers that are already running."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


@contextmanager
def explained_worker_errors() -> Iterator[None]:
    """Re-raise the error about a DataLoader worker that was killed, with the cause and what to do, in one line.

    PyTorch raises it wherever the main process is when the worker ends, so the block must contain all work that is
    done while workers run.

    Raises:
        ChildProcessError: a worker was killed; the message names its pid and the signal.
        MemoryError: a worker ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        text = f"{error} {error.__cause__ or ''}"
        killed = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+?)(?:\.|$)", text, re.DOTALL)
        if killed is None:
            raise
        # If a worker is found dead instead of signaling its end, the first error names only its pid.
        cause = re.search(r"killed by signal: ([\w ]+)", text)
        how = f"was killed by the signal {cause[1].strip()!r}" if cause else " ".join(killed[2].split())
        raise ChildProcessError(
            f"DataLoader worker (pid {killed[1]}) {how}; the usual cause is too little memory, or with 'Bus error' "
            "too little shared memory (/dev/shm, in Docker --shm-size): free some, or lower --num_workers (0: no "
            "workers) or the batch size."
        ) from None
    except MemoryError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MemoryError(
            "a DataLoader worker ran out of memory; free some, or lower --num_workers (0: no workers) or the batch "
            "size."
        ) from None
