"""The options of a training run: from the command line, a YAML file, a named recipe, or the recipe of a preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, get_type_hints

from .. import presets
from ..data.sources import DataSource
from ..training.arguments import TrainingArguments, resolve_training_precision
from ..training.launcher import launcher_settings
from .backbone_options import KINDS, BackboneArguments, move_backbone_name
from .config_options import add_config_options, config_option_types, given_options
from .parser import CommandParser

_FROM_DATA = ("epochs", "milestones")  # which a named recipe derives from the number of references
_EARLIER_NAMES = {"overwrite_output_dir": "overwrite"}  # of options, still accepted in YAML files


def _described_recipes() -> str:
    return ", ".join(f"{name} ({presets.get_recipe(name).summary})" for name in presets.list_recipes())


@dataclass
class RunArguments:
    """Options of `detris train` for the model and the splits."""

    preset: str | None = field(
        default=None,
        metadata={
            "help": f"architecture and training recipe: {', '.join(presets.list_presets())}; default: "
            f"{presets.DEFAULT_PRESET}, and with init_from the architecture of the checkpoint"
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": f"training recipe that overrides the preset's: {_described_recipes()}"},
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a trained model, from whose weights training starts"},
    )
    train_split: str = field(default="train", metadata={"help": "training split"})
    val_split: str = field(default="val", metadata={"help": "validation split"})
    keep_aspect_ratio: bool | None = field(
        default=None,
        metadata={
            "help": "pad a training batch, and each image in evaluation, to its smallest canvas, not to a square; "
            "default: false, and with init_from as the checkpoint"
        },
    )
    config_fields: dict[str, Any] = field(init=False, default_factory=dict)  # the given fields of `DetrisConfig`
    # Training arguments that `with_recipe` derives from the data. Until then they have their default values.
    set_by_recipe: list[str] = field(init=False, default_factory=list)


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
    parser.set_defaults(**{**dict.fromkeys(_FROM_DATA), **options})
    first = parser.parse_args(words)
    recipe = presets.recipe(presets.DEFAULT_PRESET if first.preset is None else first.preset)
    if first.recipe is not None:
        recipe |= presets.get_recipe(first.recipe).options
    not_given = [name for name in _FROM_DATA if getattr(first, name) is None]
    parser.set_defaults(**{**_defaults(not_given), **recipe, **launcher_settings(), **options})
    run, source, backbones, training, *rest = parser.parse_args_into_dataclasses(words)
    run.config_fields = given_options(rest[0]) if rest else {}
    run.set_by_recipe = not_given if run.recipe is not None else []
    if run.init_from is None:  # otherwise those of the checkpoint
        run.preset, run.keep_aspect_ratio = run.preset or presets.DEFAULT_PRESET, bool(run.keep_aspect_ratio)
    for kind in KINDS:
        move_backbone_name(run.config_fields, backbones, kind)
    return TrainOptions(run, source, backbones, training)


def _defaults(names: Sequence[str]) -> dict[str, Any]:
    # Not from an instance, which checks the settings of accelerate launch that an option may override.
    return {
        option.name: copy(option.metadata["initial"]) for option in fields(TrainingArguments) if option.name in names
    }


def with_recipe(options: TrainOptions, references: int | None, num_processes: int) -> TrainOptions:
    """Return the options with the values that the named recipe derives from the size of the training split.

    Args:
        options: the resolved options.
        references: number of references of the training split; None: unknown, because it is a stream.
        num_processes: number of processes.

    Raises:
        ValueError: the size is needed and unknown.
    """
    run, training = options.run, options.training
    if not run.recipe or not run.set_by_recipe:
        return options
    recipe = presets.get_recipe(run.recipe)
    values: dict[str, Any] = {"epochs": training.epochs}
    if "epochs" in run.set_by_recipe:
        if references is None:
            raise ValueError(
                f"--recipe {run.recipe}: expected a dataset of known size, which determines the epochs, got a stream; "
                "remove --streaming, or set --epochs."
            )
        samples_per_step = training.batch_size * num_processes * training.gradient_accumulation_steps
        values["epochs"] = recipe.epochs(references, samples_per_step)
    values["milestones"] = recipe.milestones(values["epochs"])
    return options._replace(training=replace(training, **{name: values[name] for name in run.set_by_recipe}))


def option_types() -> dict[str, Any]:
    """Return the types of all options that a YAML file may set."""
    types = {}
    for cls in _OPTION_CLASSES:
        hints = get_type_hints(cls)
        types |= {option.name: hints[option.name] for option in fields(cls) if option.init}
    types |= {earlier: types[name] for earlier, name in _EARLIER_NAMES.items()}
    return {**types, "preset": Any, **config_option_types()}  # `presets` checks the preset's name


def describe_recipe(run: RunArguments, training: TrainingArguments) -> str:
    """Describe in one line which values of the recipes are used, and which of them are overridden."""
    preset = run.preset or presets.DEFAULT_PRESET
    recipe = presets.recipe(preset)
    if run.recipe is not None:
        recipe |= presets.get_recipe(run.recipe).options
        recipe |= {name: getattr(training, name) for name in run.set_by_recipe}
    if "precision" in recipe:
        recipe["precision"] = resolve_training_precision(recipe["precision"])
    used = {name: value for name, value in recipe.items() if getattr(training, name) == value}
    values = ", ".join(f"{name}={value}" for name, value in used.items()) or "none"
    overridden = [name for name in recipe if name not in used]
    title = f"Recipe of {preset}" + (f" with {run.recipe}" if run.recipe else "")
    return f"{title}: {values}" + (f" (overridden: {', '.join(overridden)})" if overridden else "")
