"""SIGINT and SIGTERM: the running step ends, the run is saved, the process leaves. A second one leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_ONE_EVENT = 5.0  # seconds


class TrainingInterrupted(KeyboardInterrupt):
    """Raised by `train` when a signal stopped it and all is saved; the message says how to go on.

    Args:
        message: for the user.
        signum: the signal's number; a command line leaves with 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """Context that notes the first SIGINT or SIGTERM in `received`; the second ends the process at once.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0

    def __enter__(self) -> StopSignals:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and "TORCHELASTIC_RUN_ID" in os.environ and now - self._first < _ONE_EVENT:
            return  # the launcher passes on what reached the whole group already
        if self.received:
            # Not an exception: whatever is being written now is written aside, and the last checkpoint is whole.
            os._exit(128 + signum)
        self.received, self._first = signum, now
        name = signal.Signals(signum).name
        print(f"\n{name}: saving after this step; once more to leave at once", file=sys.stderr, flush=True)
