"""What every reading process of a data loader does first."""

import signal


def leave_signals_to_the_parent(worker: int) -> None:
    """`worker_init_fn` of a loader: a signal to the whole process group must not end the readers.

    PyTorch's own handler lets a worker die of SIGTERM, and the parent of that, in the middle of saving.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
