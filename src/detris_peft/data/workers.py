"""DataLoader worker initialization."""

import signal


def ignore_signals(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a DataLoader worker; pass it as `worker_init_fn`.

    These signals are sent to the entire process group. PyTorch's default handler would terminate the worker on
    SIGTERM, which in turn would terminate the parent process while it is saving.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
