"""The first signal is noted, the second ends the process at once, and afterwards all is as it was."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from detris_peft.training.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(each) for each in StopSignals.SIGNALS]
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert [signal.getsignal(each) for each in StopSignals.SIGNALS] == before
    assert f"{number.name}: saving after this step; once more to leave at once" in capsys.readouterr().err


def exit_code_after(*numbers):
    """Of a process that gets these signals one after the other; 0 if it lives through them."""
    child = os.fork()
    if child == 0:
        with StopSignals():
            for number in numbers:
                os.kill(os.getpid(), number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_second_leaves_at_once():
    assert exit_code_after(signal.SIGINT, signal.SIGTERM) == 128 + signal.SIGTERM


def test_outside_the_main_thread_nothing_is_caught():
    caught = []

    def body():
        with StopSignals() as signals:
            caught.append(signals.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert caught == [0]


@pytest.mark.parametrize("passed_on", [False, True])
def test_a_launcher_may_pass_on_what_reached_the_group_already(passed_on, monkeypatch):
    """torchelastic forwards SIGTERM to processes that had it from Slurm: one event, not two."""
    if passed_on:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    code = exit_code_after(signal.SIGTERM, signal.SIGTERM)
    assert code == (0 if passed_on else 128 + signal.SIGTERM)
