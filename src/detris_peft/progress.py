"""Progress bars: tqdm's bar in a terminal or notebook, a few plain lines in a log file.

A bar that is redrawn ten times per second fills a log file. Without a terminal, progress is therefore printed as
lines, at most one per minute. If the total is known, a line also needs 10 % of it, or ten minutes, since the last
line. Work that takes less than a minute prints no line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as std_tqdm

LINE_SECONDS = 60  # at least, between two lines
LINE_SHARE = 0.1  # of the total, between two lines
SILENCE_SECONDS = 600  # after which a line needs no LINE_SHARE, so that a long job shows that it is alive


def progress_bar(
    iterable: Iterable[Any] | None = None,
    desc: str | None = None,
    total: int | None = None,
    *,
    unit: str = "it",
    initial: int = 0,
    disable: bool = False,
) -> std_tqdm:
    """Return a tqdm bar on the standard error stream, which disappears once it is closed.

    Args:
        iterable: what to iterate over; None for a bar that `update` advances.
        desc: text before the bar.
        total: number of items; None takes it from the iterable, or leaves it unknown.
        unit: name of an item, for the speed in items per second.
        initial: items that are done already; not counted in the speed.
        disable: show nothing. tqdm's environment variable `TQDM_DISABLE` has the same effect.
    """
    options: dict[str, Any] = {"desc": desc, "total": total, "unit": unit, "initial": initial}
    if disable or sys.stderr is None:
        options["disable"] = True  # False would override TQDM_DISABLE
    if shows_bars():
        return tqdm(iterable, leave=False, **options)
    return _LineProgress(iterable, **options)


def shows_bars() -> bool:
    """Return whether the standard error stream can redraw a line: it is a terminal or the output of a notebook."""
    stream = sys.stderr
    if stream is None:
        return False
    return getattr(stream, "isatty", bool)() or type(stream).__module__.partition(".")[0] == "ipykernel"


@contextmanager
def no_dataset_bars_in_logs() -> Iterator[None]:
    """Hide the progress bars of `datasets` unless `shows_bars`. Use it as a context manager or a decorator.

    A value of the environment variable `HF_DATASETS_DISABLE_PROGRESS_BARS` has priority.
    """
    import datasets
    from datasets import config

    chosen = config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or datasets.are_progress_bars_disabled()
    if chosen or shows_bars():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


class _LineProgress(std_tqdm):
    """Progress as plain lines; see the module's docstring for when they are printed."""

    def __init__(self, iterable: Iterable[Any] | None, **options: Any) -> None:
        self._line_seconds, self._line_n = 0.0, options["initial"]  # time and items at the last line
        # ncols=0 omits the bar itself; smoothing=0 gives the mean speed. With miniters=1, tqdm's monitor never runs.
        super().__init__(iterable, leave=False, ncols=0, mininterval=1, miniters=1, smoothing=0, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line if one is due. tqdm calls this for each redraw, and with an empty `msg` to clear the bar."""
        elapsed = self.format_dict["elapsed"]
        if msg is None and self._is_due(elapsed - self._line_seconds):
            self.fp.write(f"{self}\n")
            self.fp.flush()
            self._line_seconds, self._line_n = elapsed, self.n
        return False  # nothing to clear

    def _is_due(self, seconds: float) -> bool:
        if seconds < LINE_SECONDS or self.n == self._line_n:
            return False
        return not self.total or seconds >= SILENCE_SECONDS or self.n - self._line_n >= LINE_SHARE * self.total
