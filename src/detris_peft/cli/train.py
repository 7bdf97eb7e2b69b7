"""Train DETRIS on any dataset: RefCOCO, RefCOCO+, G-Ref, mixed, gRefCOCO, RefShapes, your own, or one from the Hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .options_file import read_options
from .parser import CommandParser
from .train_options import TrainOptions, option_types, resolve_options, run_parser

_TITLE = (
    "Train DETRIS on any dataset: the RefCOCO family, your own, or one from the Hub. Options that are not given are "
    "taken from the YAML file (--config), then from the named recipe (--recipe), then from the preset's recipe, then "
    "from the defaults below."
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train with the given arguments; default: those of the command line."""
    options = parse_arguments(argv, prog)

    from .training_run import train_in_all_processes

    train_in_all_processes(options)


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    parser = run_parser(prog, _TITLE)
    parser.add_argument("--config", help="YAML file of options")
    return parser


def parse_arguments(argv: Sequence[str] | None, prog: str | None = None) -> TrainOptions:
    """Parse the options. Precedence: command line, YAML file, named recipe, recipe of the preset, defaults.

    Raises:
        ValueError: an option of the YAML file is unknown, or a value is outside its range.
        FileNotFoundError: the YAML file does not exist.
    """
    parser = create_parser(prog)
    words = [*(sys.argv[1:] if argv is None else argv)]
    file = parser.parse_args(words).config
    return resolve_options(read_options(file, option_types()) if file else {}, parser, words)
