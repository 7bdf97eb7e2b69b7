"""SIGINT and SIGTERM: finish the step, save and exit. A second signal exits immediately."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_SAME_EVENT_SECONDS = 5.0


class TrainingInterrupted(KeyboardInterrupt):
    """Raised by `train` after a signal, once the run is saved. The message explains how to resume.

    Args:
        message: text shown to the user.
        signum: number of the signal; a command exits with 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """Context manager that records the first SIGINT or SIGTERM in `received`. The second one ends the process.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0

    def __enter__(self) -> StopSignals:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and "TORCHELASTIC_RUN_ID" in os.environ and now - self._first < _SAME_EVENT_SECONDS:
            return  # torchrun forwards a signal that the process group has already received
        if self.received:
            # Not an exception: writes are atomic, so the last checkpoint stays intact.
            os._exit(128 + signum)
        self.received, self._first = signum, now
        name = signal.Signals(signum).name
        print(f"\n{name}: saving after this step; send again to exit immediately", file=sys.stderr, flush=True)
