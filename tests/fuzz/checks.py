"""What is checked for every input: no crash, no hang, no code executed, and errors of one line."""

from __future__ import annotations

import sys
import traceback

from tests.fuzz.target import ALLOWED, Target

# Events of the interpreter that no reader of a file causes.
_EXECUTIONS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.mkdir")
_executed: list[str] = []


def watch_for_execution() -> None:
    """Record from now on whether a program, another process or a connection is started. It cannot be undone."""
    sys.addaudithook(_record)


def _record(event: str, arguments: tuple) -> None:
    # Targets create their own folders.
    if event in _EXECUTIONS and (event != "os.mkdir" or "ran" in str(arguments[0])):
        _executed.append(event)


def problem(target: Target, data: bytes) -> str | None:
    """Return what is wrong with how a target reads an input, or None."""
    _executed.clear()
    found = None
    try:
        target.read(data)
    except ALLOWED as error:
        message = str(error)
        if len(message.splitlines()) != 1 or not message.strip():
            found = f"{type(error).__name__} with a message of {len(message.splitlines())} lines: {message[:200]!r}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__} in {place.filename}:{place.lineno}: {str(error)[:200]}"
    if _executed:
        found = f"executed: {_executed}"
    return found
