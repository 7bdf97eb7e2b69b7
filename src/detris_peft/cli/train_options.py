"""The options of a training run: from the command line, a YAML file, or the recipe of a preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_type_hints

from .. import presets
from ..data.sources import DataSource
from ..training.arguments import TrainingArguments
from ..training.launcher import launcher_settings
from .backbone_options import KINDS, BackboneArguments, move_backbone_name
from .config_options import add_config_options, config_option_types, given_options
from .parser import CommandParser

_EARLIER_NAMES = {"overwrite_output_dir": "overwrite"}  # of options, still accepted in YAML files


@dataclass
class RunArguments:
    """Options of `detris train` for the model and the splits."""

    preset: str = field(
        default="detris-b",
        metadata={"help": "architecture and training recipe: " + ", ".join(presets.list_presets())},
    )
    train_split: str = field(default="train", metadata={"help": "training split"})
    val_split: str = field(default="val", metadata={"help": "validation split"})
    keep_aspect_ratio: bool = field(
        default=False,
        metadata={
            "help": "pad a training batch, and each image in evaluation, to its smallest canvas, not to a square"
        },
    )
    config_fields: dict[str, Any] = field(init=False, default_factory=dict)  # the given fields of `DetrisConfig`


class TrainOptions(NamedTuple):
    """All options of a run."""

    run: RunArguments
    source: DataSource
    backbones: BackboneArguments
    training: TrainingArguments


_OPTION_CLASSES: Any = (RunArguments, DataSource, BackboneArguments, TrainingArguments)


def run_parser(prog: str | None = None, description: str | None = None) -> CommandParser:
    """Return a parser of all options of a run."""
    parser = CommandParser(_OPTION_CLASSES, prog=prog, description=description)
    add_config_options(parser)
    return parser


def resolve_options(
    options: Mapping[str, Any], parser: CommandParser | None = None, words: Sequence[str] = ()
) -> TrainOptions:
    """Return the options of a run from those of a file and of the command line.

    Args:
        options: options of a file, as `read_options` returns them.
        parser: the parser of the command line; default: a new one.
        words: the command line, whose options override those of the file.

    Raises:
        ValueError: a value is outside its range, or contradicts another one.
    """
    parser = parser or run_parser()
    options = {_EARLIER_NAMES.get(name, name): value for name, value in options.items()}
    parser.set_defaults(**options)
    preset = parser.parse_args(words).preset
    parser.set_defaults(**{**presets.recipe(preset), **launcher_settings(), **options})
    run, source, backbones, training, *rest = parser.parse_args_into_dataclasses(words)
    run.config_fields = given_options(rest[0]) if rest else {}
    for kind in KINDS:
        move_backbone_name(run.config_fields, backbones, kind)
    return TrainOptions(run, source, backbones, training)


def option_types() -> dict[str, Any]:
    """Return the types of all options that a YAML file may set."""
    types = {}
    for cls in _OPTION_CLASSES:
        hints = get_type_hints(cls)
        types |= {option.name: hints[option.name] for option in fields(cls) if option.init}
    types |= {earlier: types[name] for earlier, name in _EARLIER_NAMES.items()}
    return {**types, "preset": Any, **config_option_types()}  # `presets` checks the preset's name


def describe_recipe(preset: str, training: TrainingArguments) -> str:
    """Describe in one line which values of the preset's recipe are used, and which of them are overridden."""
    recipe = presets.recipe(preset)
    used = {name: value for name, value in recipe.items() if getattr(training, name) == value}
    values = ", ".join(f"{name}={value}" for name, value in used.items()) or "none"
    overridden = [name for name in recipe if name not in used]
    return f"Recipe of {preset}: {values}" + (f" (overridden: {', '.join(overridden)})" if overridden else "")
