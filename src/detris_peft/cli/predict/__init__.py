"""Segment what expressions refer to in images: one image and one sentence, or many of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..checkpoint_options import CheckpointArguments
from ..parser import CommandParser
from .options import PredictionArguments, parse_arguments


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    return CommandParser((CheckpointArguments, PredictionArguments), prog=prog, description=__doc__)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris predict` with these arguments; default: those of the command line."""
    parser = create_parser(prog)
    checkpoint, arguments = parse_arguments(parser, argv)

    if arguments.is_single:
        from .single import predict_one

        if os.environ.get("RANK", "0") == "0":
            predict_one(checkpoint, arguments)
    else:
        from .many import predict_many

        predict_many(checkpoint, arguments)
