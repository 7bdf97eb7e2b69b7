"""The `detris` command. Each subcommand is a module of its own, loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_COMMANDS = {
    "train": "train on a dataset in REFER's layout",
    "evaluate": "score a checkpoint on a split",
    "predict": "segment what a sentence refers to in one image",
    "convert": "the authors' released checkpoints to ours and back",
    "data": "check a dataset before training on it, or convert it to parquet",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand with these arguments; by default those of the command line."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    parser = argparse.ArgumentParser(
        prog="detris",
        description="\n".join(f"{name:10}{does}" for name, does in _COMMANDS.items()),
        epilog="detris COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(arguments[:1]).command
    run(importlib.import_module(f".{command}", __name__).main, arguments[1:], f"detris {command}")


def run(command: Callable[..., None], *arguments: Any) -> None:
    """Call a command; what goes wrong with its input ends the process with one line and exit code 1."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # peft asks transformers by a name that is on its way out; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    try:
        command(*arguments)
    except (OSError, ValueError, MemoryError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt as stop:
        if str(stop):  # training's, which says how to go on
            print(stop, file=sys.stderr)
        sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
