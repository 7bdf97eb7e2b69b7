"""The `detris` command. Subcommands are imported lazily."""

from __future__ import annotations

import errno
import importlib
import io
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import wrapt

from ..errors import is_out_of_memory, one_line

COMMANDS = {
    "train": "train on a dataset",
    "evaluate": "score a checkpoint on a split of a dataset",
    "predict": "segment what expressions refer to in images",
    "compare": "train several configurations on the same data, and report their scores",
    "params": "count the parameters of a preset or checkpoint, per part",
    "convert": "convert released checkpoints to and from our format",
    "data": "check, describe, review, split or convert a dataset",
    "demo": "serve a web page that segments images by sentence, or export it as a Space",
    "export": "write a checkpoint as a torch.export program or an ONNX file",
    "completion": "print a completion script for bash, zsh or tcsh",
}
_TRACEBACK = "DETRIS_TRACEBACK"  # environment variable: show tracebacks instead of one-line errors
# What to do about errors of the operating system, whose messages name only the cause.
_ADVICE = {
    errno.EACCES: "change its permissions or choose another path",
    errno.EDQUOT: "free some of your quota or choose another disk",
    errno.EISDIR: "pass a file",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower --num_workers",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space or choose another disk",
    errno.ENOTDIR: "check the path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "choose a path on a writable disk",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand with these arguments; default: those of the command line."""
    from .. import __version__
    from .parser import parse_command

    arguments = [*(sys.argv[1:] if argv is None else argv)]
    command = parse_command(arguments, "detris", COMMANDS, f"detris-peft {__version__}")
    run(importlib.import_module(f".{command}", __name__).main, arguments[1:], f"detris {command}")


def run(command: Callable[..., None], *arguments: Any) -> None:
    """Call a command. Errors are printed as one line and exit with code 1.

    With the environment variable DETRIS_TRACEBACK=1, errors are raised instead. A closed standard output (`| head`)
    ends the command without a message.
    """
    # Runs when a command imports transformers. Importing it here would take seconds.
    wrapt.register_post_import_hook(lambda module: module.disable_progress_bar(), "transformers.utils.logging")
    # peft still uses a deprecated attribute of transformers; users cannot change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # Pillow warns from half of its limit on, above which images are refused.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sentence may have characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command(*arguments)
        _flush()
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)  # as a program that the signal ends
    except KeyboardInterrupt as stop:
        if str(stop):  # raised by `train`; the message explains how to resume
            print(stop, file=sys.stderr)
        sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
    except Exception as error:
        if os.environ.get(_TRACEBACK, "0") not in ("", "0"):
            raise
        sys.exit(f"error: {_describe(error)}")
    finally:
        with suppress(OSError):
            _flush()


def _flush() -> None:
    """Write buffered output; if that fails, discard it, because the interpreter would try again at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _describe(error: Exception) -> str:
    """Return the cause of an error, and what to do about it, in one line."""
    if type(error) is MemoryError and str(error):  # raised by detris_peft: it names the options to change
        return one_line(error)
    if is_out_of_memory(error):
        reason = one_line(error, first_line=True)
        return f"expected more free memory ({reason}); use a smaller batch size, smaller images or a smaller model."
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_ADVICE.get(error.errno, 'try again or choose another path')}."
    if isinstance(error, (OSError, ValueError, ImportError, pickle.UnpicklingError)) and str(error).strip():
        message = one_line(error)
        return message if message.endswith((".", "`")) else f"{message}."  # "`": a command to copy
    return (
        f"unexpected error ({type(error).__name__}: {one_line(error)}); this is a bug in detris-peft: set "
        f"{_TRACEBACK}=1 to see the traceback, and report it."
    )
