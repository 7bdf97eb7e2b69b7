"""Convert released checkpoints to folders of adapters and head, and back."""

from __future__ import annotations

from collections.abc import Sequence

from .backbone_options import BackboneArguments
from .convert_options import ConvertArguments
from .parser import CommandParser


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser((ConvertArguments, BackboneArguments), prog=prog, description=__doc__)
    parser.add_argument("checkpoint", help="released .pth; with --to-official, a detris_peft checkpoint folder")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris convert` with these arguments; default: those of the command line."""
    arguments, backbones, rest = create_parser(prog).parse_args_into_dataclasses(argv)

    from .official_conversion import from_official, to_official

    (to_official if arguments.to_official else from_official)(rest.checkpoint, arguments, backbones)
