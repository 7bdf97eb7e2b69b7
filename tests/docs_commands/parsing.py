"""Parse a command with the parser of `detris` or of `accelerate launch`, without running it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from detris_peft.cli import main
from detris_peft.cli.parser import CommandParser

# What the scripts in examples/ run.
SCRIPTS = {
    "examples/train_refcoco.py": "train",
    "examples/evaluate_checkpoint.py": "evaluate",
    "examples/predict.py": "predict",
}


class Parsed(BaseException):
    """Raised once the arguments are parsed. Not an `Exception`, which `detris` would report as an error."""


def detris_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments that a command passes to `detris`, or None if it runs something else."""
    match words:
        case ["detris", *arguments]:
            return arguments
        case ["python" | "python3", "-m", "detris_peft" | "detris_peft.cli", *arguments]:
            return arguments
        case ["python" | "python3", script, *arguments] if script in SCRIPTS:
            return [SCRIPTS[script], *arguments]
        case ["accelerate", "launch", *options]:
            launch = launch_command_parser().parse_args(options)
            script = ["-m", launch.training_script] if launch.module else [launch.training_script]
            return detris_arguments(["python", *script, *launch.training_script_args])
    return None


def parse(arguments: list[str]) -> str | None:
    """Return None if `detris` parses the arguments, else its message."""
    real = CommandParser.parse_args

    def parse_args(self: Any, *args: Any, **kwargs: Any) -> Any:
        parsed = real(self, *args, **kwargs)
        if [action.dest for action in self._actions if not action.option_strings] == ["command"]:
            return parsed  # only the subcommand: another parser follows
        raise Parsed

    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandParser, "parse_args", parse_args)
        patch.setattr(CommandParser, "error", lambda self, message: _fail(messages, message))
        try:
            main(arguments)
        except Parsed:
            return None
        except SystemExit as ended:
            return messages[0] if messages else f"exit with {ended.code!r}"
    return f"{shlex.join(arguments)}: no parser was used"


def _fail(messages: list[str], message: str) -> None:
    messages.append(message)
    raise SystemExit(2)
