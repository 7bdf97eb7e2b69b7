"""Every bad input ends with one line that names the cause and the fix, and leaves nothing half-written."""

from __future__ import annotations

import importlib
import pkgutil
import shlex
import subprocess
import sys

import pytest

import tests.bad_inputs
from detris_peft.cli import main
from tests.bad_inputs.case import Case
from tests.bad_inputs.workspace import Workspace


def all_cases() -> list[Case]:
    """Collect `CASES` of every module in this folder whose name starts with `cases_`."""
    names = sorted(m.name for m in pkgutil.iter_modules(tests.bad_inputs.__path__) if m.name.startswith("cases_"))
    return [case for name in names for case in importlib.import_module(f"tests.bad_inputs.{name}").CASES]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name.replace(" ", "_"))
def test_bad_input_is_one_line(case: Case, workspace: Workspace, capfd):
    if case.prepare:
        case.prepare(workspace.folder)
    before = workspace.files(case.may_write)
    arguments = shlex.split(case.command)
    if case.subprocess:
        process = subprocess.run(
            [sys.executable, "-m", "detris_peft.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        code, line, printed = process.returncode, process.stderr.strip().splitlines()[-1], process.stderr
    else:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capfd.readouterr().err
        # A message as code is printed by the interpreter, and the process exits with 1.
        message = ended.value.code if isinstance(ended.value.code, str) else printed.strip()
        code = 1 if isinstance(ended.value.code, str) else ended.value.code
        line = message.splitlines()[-1] if message else ""
        assert not isinstance(ended.value.code, str) or "\n" not in message
    assert line.startswith("error: "), printed
    assert code == case.code
    assert "Traceback" not in printed
    assert len(line) > len("error: ") + 10
    assert "unexpected error" not in line  # the catch-all of `detris_peft.cli.run`
    for part in case.expected:
        assert part in line
    assert workspace.files(case.may_write) == before, "files were created, changed or removed"


def test_names_are_unique():
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))
