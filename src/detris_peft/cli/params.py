"""Print the parameters of a preset, a checkpoint, or any configuration, per part, next to the paper's counts.

Only configs are read, no weights. The options of `DetrisConfig` change the configuration, as in `detris train`.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .. import presets
from ..presets import Published
from .backbone_options import KINDS, move_backbone_name
from .checkpoint_options import check_checkpoint_folder
from .config_options import add_config_options, given_options
from .parser import CommandParser

if TYPE_CHECKING:
    from ..modeling import DetrisConfig
    from ..modeling.parameter_counts import ParameterCounts

_NOTE = (
    "paper: trained parameters outside the head, in millions, and mean mIoU on RefCOCO val, testA and testB, in "
    "Tables 2 and 3 of https://arxiv.org/abs/2501.08580; not measured by us"
)
_PARTS = {
    "vision_adapter": "image encoder's adapter",
    "text_adapter": "text encoder's adapter",
    "bridger": "Bridger",
    "backbones": "trained encoders",
    "backbone_update": "backbone update",
    "neck": "neck",
    "decoder": "decoder",
    "projector": "projector",
    "head": "head",
    "trained": "trained",
    "frozen": "frozen",
}
# Columns of a table of several configurations.
_COLUMNS = {
    "name": "preset",
    "vision_adapter": "image adapter",
    "text_adapter": "text adapter",
    "bridger": "Bridger",
    "backbones": "encoders",
    "backbone_update": "backbone update",
    "paper": "paper",
    "difference": "difference",
    "head": "head",
    "trained": "trained",
    "frozen": "frozen",
    "paper_miou": "paper's mIoU",
}


@dataclass
class ParamsArguments:
    """Options of `detris params`."""

    all: bool = field(default=False, metadata={"help": "print the table of all presets"})
    format: Literal["text", "markdown", "csv", "json"] = field(
        default="text", metadata={"help": "text, markdown, csv or json; csv and json contain all counts"}
    )
    vision_model: str | None = field(
        default=None, metadata={"help": "image encoder: folder or Hub id, of which only the config is read"}
    )
    text_model: str | None = field(
        default=None, metadata={"help": "text encoder: folder or Hub id, of which only the config is read"}
    )


class _Row(NamedTuple):
    name: str
    counts: ParameterCounts
    published: Published | None

    def values(self) -> dict[str, Any]:
        """Return all counts, and what the paper states, by name."""
        counts, published = self.counts, self.published or Published("")
        derived = {name: getattr(counts, name) for name in ("backbone_update", "head", "trained")}
        paper = None if published.backbone_update is None else round(1e6 * float(published.backbone_update))
        return {
            "name": self.name,
            **asdict(counts),
            **derived,
            "paper": published.backbone_update,
            "difference": None if paper is None else counts.backbone_update - paper,
            "paper_miou": published.miou and published.miou[-1],
            "paper_source": published.source or None,
        }


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(ParamsArguments, prog=prog, description=__doc__)
    parser.add_argument(
        "model", nargs="?", help="preset, or folder of a checkpoint: " + ", ".join(presets.list_presets())
    )
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris params` with these arguments; default: those of the command line."""
    arguments, rest = create_parser(prog).parse_args_into_dataclasses(argv)
    given = given_options(rest)
    for kind in KINDS:
        move_backbone_name(given, arguments, kind)
    if arguments.all == (rest.model is not None):
        got = "both" if arguments.all else "none"
        raise ValueError(f"expected a preset, the folder of a checkpoint, or --all, got {got}; pass one of them.")
    changes = [*given, *(f"{kind}_model" for kind in KINDS if getattr(arguments, f"{kind}_model"))]
    if arguments.all and changes:
        raise ValueError(
            f"--all: expected no options of the model, got --{changes[0]}; pass one preset, or remove it."
        )
    if arguments.all:
        rows = [_row(name, presets.get(name), presets.published(name)) for name in presets.list_presets()]
    else:
        is_preset = rest.model in presets.list_presets()
        config = _change(presets.get(rest.model) if is_preset else _read(rest.model), arguments, given)
        rows = [_row(rest.model, config, presets.published(rest.model) if is_preset and not changes else None)]
    _print(rows, arguments)


def _row(name: str, config: DetrisConfig, published: Published | None) -> _Row:
    from ..modeling.parameter_counts import count_parameters, meta_model

    return _Row(name, count_parameters(meta_model(config)), published)


def _read(name: str) -> DetrisConfig:
    """Return the config of a checkpoint folder."""
    if not name or not Path(name).is_dir():
        nearest = difflib.get_close_matches(name, presets.list_presets(), n=1)
        fix = f"use {nearest[0]}" if nearest else "choose one of them"
        raise ValueError(
            f"MODEL: expected the folder of a checkpoint or a preset ({', '.join(presets.list_presets())}), got "
            f"{name!r}; {fix}."
        )
    check_checkpoint_folder(Path(name), "MODEL")
    from ..modeling.checkpoint import read_config

    return read_config(Path(name))


def _change(config: DetrisConfig, arguments: ParamsArguments, given: dict[str, Any]) -> DetrisConfig:
    """Return a config with the given options, scaled to the given encoders."""
    from ..modeling.backbones import read_backbone_config
    from ..modeling.configuration_detris import backbone_config
    from .config_changes import apply_config_options

    encoders: dict[str, Any] = {}
    for kind in KINDS:
        name, own = getattr(arguments, f"{kind}_model"), given.get(f"{kind}_config")
        if name and own is not None:
            raise ValueError(f"expected --{kind}_model or --{kind}_config, got both; remove one of them.")
        if name:
            fix, revision = f"pass another --{kind}_model", given.get(f"{kind}_revision") or "main"
            encoders[kind] = read_backbone_config(kind, name, fix, revision=revision)
        elif own is not None:
            encoders[kind] = backbone_config(f"{kind}_config", own)
    if encoders:
        config = config.scaled_to(*(encoders.get(kind) or getattr(config, f"{kind}_config") for kind in KINDS))
    return apply_config_options(config, given) if given else config


def _print(rows: list[_Row], arguments: ParamsArguments) -> None:
    values = [row.values() for row in rows]
    if arguments.format == "json":
        print(json.dumps(values if arguments.all else values[0], indent=2))
    elif arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, [*values[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(values)
    elif arguments.all:
        table = [[*_COLUMNS.values()], *([_text(column, row[column]) for column in _COLUMNS] for row in values)]
        _print_table(table, markdown=arguments.format == "markdown", note=_NOTE)
    else:
        _print_one(values[0], markdown=arguments.format == "markdown")


def _print_one(values: dict[str, Any], markdown: bool) -> None:
    """Print the counts of one configuration, one line per part."""
    lines = [
        ["parameters of", values["name"]],
        *([title, _text(part, values[part])] for part, title in _PARTS.items()),
    ]
    note = None
    if values["paper_source"]:
        lines.append(["backbone update in the paper", _text("paper", values["paper"])])
        lines.append(["difference", _text("difference", values["difference"])])
        note = f"paper: {values['paper_source']} of https://arxiv.org/abs/2501.08580, in millions"
    _print_table(lines, markdown, note)


def _print_table(lines: list[list[str]], markdown: bool, note: str | None) -> None:
    """Print lines of equal length with aligned columns. The first line is the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    separator, ends = (" | ", ("| ", " |")) if markdown else ("  ", ("", ""))
    for index, (first, *others) in enumerate(lines):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print(ends[0] + separator.join(cells) + ends[1])
        if markdown and index == 0:
            print(
                "|".join(
                    ["", *("-" * (width + 2) for width in widths[:1]), *("-" * (w + 1) + ":" for w in widths[1:]), ""]
                )
            )
    if note:
        print(f"\n{note}")


def _text(column: str, value: Any) -> str:
    """Return a count as text. Counts that do not exist are a dash."""
    if value is None:
        return "-"
    if column == "paper":
        return f"{value} M"
    return f"{value:+,}" if column == "difference" else f"{value:,}" if isinstance(value, int) else str(value)
