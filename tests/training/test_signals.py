"""StopSignals: the first signal is recorded, the second ends the process, and the handlers are restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from detris_peft.training.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_the_handlers_are_restored(number, capsys):
    before = [signal.getsignal(each) for each in StopSignals.SIGNALS]
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert [signal.getsignal(each) for each in StopSignals.SIGNALS] == before
    assert f"{number.name}: saving after this step; send again to exit immediately" in capsys.readouterr().err


def exit_code_after(*numbers):
    """Return the exit code of a process that receives these signals in turn; 0 if it survives them."""
    child = os.fork()
    if child == 0:
        with StopSignals():
            for number in numbers:
                os.kill(os.getpid(), number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_second_signal_ends_the_process():
    assert exit_code_after(signal.SIGINT, signal.SIGTERM) == 128 + signal.SIGTERM


def test_outside_the_main_thread_no_handler_is_installed():
    received = []

    def body():
        with StopSignals() as signals:
            received.append(signals.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert received == [0]


@pytest.mark.parametrize("forwarded", [False, True])
def test_a_signal_forwarded_by_the_launcher_counts_once(forwarded, monkeypatch):
    """torchrun forwards a SIGTERM that Slurm has already sent to the processes."""
    if forwarded:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    code = exit_code_after(signal.SIGTERM, signal.SIGTERM)
    assert code == (0 if forwarded else 128 + signal.SIGTERM)
