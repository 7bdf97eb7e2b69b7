"""Progress bars in a terminal, and progress as lines without one."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import datasets
import pytest

from detris_peft.progress import no_dataset_bars_in_logs, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def log(capsys):
    """Return a function that returns the lines written to the standard error stream, which is no terminal."""
    return lambda: capsys.readouterr().err.splitlines(keepends=True)


@pytest.fixture
def clock(monkeypatch):
    """Time in seconds, as tqdm sees it; set `clock[0]`."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def redirect(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def work(clock, items, seconds, **options):
    """Take `seconds` for each item."""
    for _ in progress_bar(range(items), "images", unit="image", **options):
        clock[0] += seconds


def test_a_log_gets_one_line_per_10_percent(log, clock):
    work(clock, 1000, 1.0)
    lines = log()
    assert [line.split()[1] for line in lines] == [f"{percent}%" for percent in range(10, 101, 10)]
    assert lines[3] == "images:  40% 400/1000 [06:40<10:00,  1.00image/s]\n"


def test_a_log_gets_one_line_per_minute_if_10_percent_take_less(log, clock):
    work(clock, 1000, 0.25)
    assert [line.split()[1] for line in log()] == ["24%", "48%", "72%", "96%"]


def test_a_log_gets_no_line_for_less_than_a_minute(log, clock):
    work(clock, 1000, 0.05)
    assert log() == []


def test_a_log_gets_a_line_every_ten_minutes_if_10_percent_take_longer(log, clock):
    work(clock, 36_000, 1.0)
    assert len(log()) == 60


def test_a_log_gets_one_line_per_minute_if_the_total_is_unknown(log, clock):
    for _ in progress_bar(iter(range(300)), "rows"):
        clock[0] += 1
    lines = log()
    assert lines[0] == "rows: 60it [01:00,  1.00it/s]\n"
    assert len(lines) == 5


def test_redraws_and_postfixes_add_no_lines(log, clock):
    with progress_bar(desc="epoch 1/2", total=100, unit="batch", initial=40) as bar:
        for _ in range(60):
            clock[0] += 2
            bar.update()
            bar.set_postfix_str("loss 0.1")
            bar.refresh()
    lines = log()
    assert [line.split()[2] for line in lines] == ["70%", "100%"]
    assert "loss 0.1" in lines[0]


def test_a_terminal_gets_a_bar_that_disappears(monkeypatch):
    terminal = redirect(monkeypatch, Terminal())
    assert list(progress_bar(range(3), "images")) == [0, 1, 2]
    written = terminal.getvalue()
    assert "images:   0%|" in written
    assert "\n" not in written
    assert written.endswith("\r")


def test_a_notebook_gets_a_bar(monkeypatch):
    stream_class = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    stream = redirect(monkeypatch, stream_class())
    list(progress_bar(range(3), "images"))
    assert "images:   0%|" in stream.getvalue()


def test_disabled_bars_and_a_missing_stream_show_nothing(monkeypatch, clock):
    terminal = redirect(monkeypatch, Terminal())
    work(clock, 300, 1.0, disable=True)
    assert terminal.getvalue() == ""
    redirect(monkeypatch, None)
    work(clock, 300, 1.0)


def test_the_environment_variable_of_tqdm_disables_bars():
    """In a new process, as tqdm reads it once."""
    code = """if True:
        import sys
        from detris_peft.progress import progress_bar
        for is_terminal in (True, False):
            sys.stderr.isatty = lambda: is_terminal
            print(progress_bar(range(3)).disable)
        """
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.parametrize(("stream", "hidden"), [(Terminal, False), (io.StringIO, True)])
def test_bars_of_datasets_are_hidden_in_logs(monkeypatch, stream, hidden):
    redirect(monkeypatch, stream())
    datasets.enable_progress_bars()  # a command that ran before in this process has disabled them
    with no_dataset_bars_in_logs():
        assert datasets.are_progress_bars_disabled() == hidden
    assert not datasets.are_progress_bars_disabled()


def test_bars_of_datasets_that_were_disabled_stay_disabled(log):
    datasets.disable_progress_bars()
    try:
        with no_dataset_bars_in_logs():
            pass
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()
