"""Print a completion script for a shell, which completes commands, options, and their choices and files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .parser import CommandParser

_SHELLS = ("bash", "zsh", "tcsh")
_USAGE = (
    'To use it, add this line to ~/.bashrc: eval "$(detris completion bash)"; for zsh, to ~/.zshrc, after compinit: '
    'eval "$(detris completion zsh)".'
)


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(prog=prog, description=__doc__, epilog=_USAGE)
    parser.add_argument("shell", choices=_SHELLS, help="shell that reads the script")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris completion` with these arguments; default: those of the command line."""
    shell = create_parser(prog).parse_args(argv).shell

    import shtab

    sys.stdout.write(shtab.complete(_parser_of_all_commands(), shell))


def _parser_of_all_commands() -> argparse.ArgumentParser:
    """Return a parser with one subparser per command, each with the options of the command's own parser."""
    from . import COMMANDS
    from .data import DESCRIPTIONS

    root = argparse.ArgumentParser("detris", description="Text-guided image segmentation.")
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers(dest="command")
    for name, description in COMMANDS.items():
        module = import_module(f".{name}", __package__)
        if name != "data":
            _add_command(commands, name, description, module.create_parser(f"detris {name}"))
            continue
        subcommands = commands.add_parser(name, help=description).add_subparsers(dest="data_command")
        for subname, text in DESCRIPTIONS.items():
            _add_command(subcommands, subname, text, module.create_parser(subname))
    return root


def _add_command(commands: argparse._SubParsersAction, name: str, description: str, parser: CommandParser) -> None:
    import shtab

    for action in parser._actions:
        # The other spelling, --batch-size, is accepted too, but would list every option twice.
        underscores = {text.replace("-", "_") for text in action.option_strings if "_" in text}
        action.option_strings = [
            text for text in action.option_strings if "_" in text or text.replace("-", "_") not in underscores
        ]
        if action.nargs != 0 and not action.choices and action.type in (None, str):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  read by shtab
    commands.add_parser(name, help=description, description=parser.description, parents=[parser], add_help=False)
