"""Every command of README.md and docs/*.md runs, with an installed wheel and outside of the checkout.

The commands of one document run in their order in one folder, see `workspace.py`. `table.py` lists what is changed,
and what is only parsed, with the reason. `pytest -k hub.md tests/docs_commands -m slow` runs one document.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from .extraction import CHECKOUT, DOCUMENTS, Command, read_commands, simple_commands
from .parsing import detris_arguments, parse
from .table import DEFAULT_OUTPUTS, OUTPUTS, SERVERS, reason_not_to_run, shorten, substitute
from .workspace import write_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_TIMEOUT = 600  # seconds, for one command
_TRAIN = "detris train --preset tiny --data_root DATA --dataset refcoco --epochs 1 --batch_size 2 --num_workers 0"


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment variables of a shell in which the wheel of this checkout is installed."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []  # else pip downloads it
    commands = [
        [*pip, "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", folder, CHECKOUT],
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--find-links", folder, "--target", folder / "site"],
    ]
    commands[1].append("detris-peft")
    for command in commands:
        completed = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=folder)
        assert completed.returncode == 0, completed.stderr
    path = [str(folder / "site/bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    variables = {"PATH": os.pathsep.join(path), "PYTHONPATH": str(folder / "site"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **variables, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def workspace(environment, tmp_path_factory):
    """The folder of `write_workspace`, with checkpoints that the installed command trained."""
    folder = write_workspace(tmp_path_factory.mktemp("workspace"))
    run(f"{_TRAIN} --output_dir runs/b", folder, environment)
    # Backbones are named relative to the checkpoint: a copy of the complete run works at any place.
    for copy in ("runs/detris", "runs/lora", "quickstart/run", "run"):
        shutil.copytree(folder / "runs/b", folder / copy)
    return folder


def run(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command line with bash, and check that it succeeds and writes the outputs that it names."""
    outputs = named_outputs(text)
    if not re.search(r"--(resume|overwrite)\b", text):
        replaced = [*outputs, *DEFAULT_OUTPUTS]  # prepared, or written by an alternative command
        for output in replaced:
            remove(folder / output)
    command = ["bash", "-euo", "pipefail", "-c", text]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also what the launcher started
            raise
    assert process.returncode == 0, f"exit code {process.returncode}: {errors[-2000:]}"
    assert "Traceback" not in errors, errors[-2000:]
    missing = [output for output in outputs if not (folder / output).exists()]
    assert not missing, f"expected {missing} to be written: {printed[-1000:]}{errors[-1000:]}"


def run_server(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Start a server, wait for the address that it prints, and stop it as Ctrl-C does."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {text}"],
        cwd=folder,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        printed = []
        for line in server.stdout:
            printed.append(line)
            if "http://" in line:
                break
        else:
            pytest.fail(f"the server ended: {''.join(printed)[-2000:]}")
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
        assert server.returncode in (0, 130, -signal.SIGINT)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def named_outputs(text: str) -> list[str]:
    """Return the files and folders that options of a command name as its outputs."""
    words = shlex.split(text, comments=True)
    return [value for option, value in pairwise(words) if option in OUTPUTS and not value.startswith("-")]


def is_complete(command: Command) -> bool:
    """Whether a command in the running text is no fragment: `detris` accepts its arguments."""
    parsed = [detris_arguments(words) for words in simple_commands(substitute(command.text))]
    return all(arguments is None or parse(arguments) is None for arguments in parsed)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_runs(document, environment, workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "work")
    failures = []
    for command in read_commands(document):
        if reason_not_to_run(command.text) or (command.inline and not is_complete(command)):
            continue
        text = shorten(substitute(command.text))
        try:
            (run_server if re.search(SERVERS, text) else run)(text, folder, environment)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failures.append(f"{command}\n  as: {text}\n  {error}")
    assert not failures, "\n\n".join(failures)


def test_the_commands_use_the_wheel(environment, tmp_path):
    code = "import detris_peft, sys; sys.stdout.write(detris_peft.__file__)"
    found = subprocess.run(
        ["python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert found.stdout.startswith(environment["PYTHONPATH"])
    assert shutil.which("detris", path=environment["PATH"]) == str(Path(environment["PYTHONPATH"], "bin/detris"))
