"""The `detris` command. Subcommands are imported lazily."""

from __future__ import annotations

import argparse
import importlib
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import one_line

_COMMANDS = {
    "train": "train on a dataset",
    "evaluate": "score a checkpoint on a split of a dataset",
    "predict": "segment what an expression refers to in one image",
    "convert": "convert released checkpoints to and from our format",
    "data": "check a dataset before training on it, or convert it to parquet",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand with these arguments; default: those of the command line."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    parser = argparse.ArgumentParser(
        prog="detris",
        description="\n".join(f"{name:10}{description}" for name, description in _COMMANDS.items()),
        epilog="detris COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(arguments[:1]).command
    run(importlib.import_module(f".{command}", __name__).main, arguments[1:], f"detris {command}")


def run(command: Callable[..., None], *arguments: Any) -> None:
    """Call a command. Input errors are printed as one line and exit with code 1."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # peft still uses a deprecated attribute of transformers; users cannot change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    try:
        command(*arguments)
    except (OSError, ValueError, MemoryError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt as stop:
        if str(stop):  # raised by `train`; the message explains how to resume
            print(stop, file=sys.stderr)
        sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
