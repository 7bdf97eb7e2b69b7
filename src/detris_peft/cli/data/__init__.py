"""Check, describe, review, split or convert a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ...data.sources import DataSource
from ..parser import CommandParser, parse_command
from . import check, convert, describe, review, split

DESCRIPTIONS = {
    "check": "count rows, decode every image, and list errors; exit code 1 if there are errors",
    "convert": "write parquet shards with embedded images and masks, ready for the Hub",
    "describe": "make referring expressions from the masks and classes of a labeling tool's export",
    "review": "serve a page on which people check masks and edit sentences",
    "split": "divide a dataset into train, val and test by image, with near-duplicates in one split",
}
_COMMANDS: dict[str, tuple[Any, Any]] = {
    "check": (check.CheckArguments, check.check),
    "convert": (convert.ConvertArguments, convert.convert),
    "describe": (describe.DescribeArguments, describe.describe),
    "review": (review.ReviewArguments, review.review),
    "split": (split.SplitArguments, split.split),
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris data` with these arguments; by default with those of the command line."""
    arguments, prog = [*(sys.argv[1:] if argv is None else argv)], prog or "detris data"
    command = parse_command(arguments, prog, DESCRIPTIONS)
    options, source = create_parser(command, prog).parse_args_into_dataclasses(arguments[1:])

    import datasets

    datasets.disable_progress_bars()
    run = _COMMANDS[command][1]
    run(options, source)


def create_parser(command: str, prog: str = "detris data") -> CommandParser:
    """Return the parser of the options of a `detris data` command."""
    options_class = _COMMANDS[command][0]
    return CommandParser((options_class, DataSource), prog=f"{prog} {command}", description=DESCRIPTIONS[command])
