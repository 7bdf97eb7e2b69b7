"""Train DETRIS on any dataset: RefCOCO, RefCOCO+, G-Ref, mixed, gRefCOCO, RefShapes, your own, or one from the Hub."""

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import datasets
from accelerate import PartialState
from torch import accelerator
from transformers import PreTrainedTokenizerBase, set_seed

from .. import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor, presets
from ..data import BadRows
from ..data.sources import DataSource
from ..data.tools.leaks import shared_images
from ..modeling.hub import check_backbones_on_hub, check_hub_access
from ..tokenization_detris import load_tokenizer, train_tokenizer
from ..training import TrainingArguments, TrainingInterrupted, train
from ..training.batching import GlobalBatches
from ..training.checkpoints import check_resume_folder
from ..training.distributed import run_on_all_ranks
from ..training.launcher import launcher_settings
from ..training.output_dir import check_output_dir, lock
from ..training.trackers import check_trackers
from .backbone_options import KINDS, Backbone, BackboneArguments, load_backbone, select_backbones
from .checkpoint_options import truncation_notice
from .config_options import add_config_options, apply_config_options, config_option_types, given_options
from .options_file import read_options
from .parser import CommandParser

_TITLE = (
    "Train DETRIS on any dataset: the RefCOCO family, your own, or one from the Hub. Options that are not given are "
    "taken from the YAML file (--config), then from the preset's recipe, then from the defaults below."
)

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


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train with the given arguments; default: those of the command line."""
    options = parse_arguments(argv, prog)
    state = start_processes()
    try:
        run_training(options, state)
    except TrainingInterrupted:
        state.destroy_process_group()
        raise
    state.destroy_process_group()  # not after an error on one rank: the others may block


def start_processes() -> PartialState:
    """Return the state of the processes, which are connected to each other once.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("expected matplotlib, which plots the curves; run: pip install 'detris-peft[train]'.")
    state = PartialState(cpu=not accelerator.is_available())
    _warn_if_not_distributed(state)
    return state


def run_training(all_options: TrainOptions, state: PartialState) -> list[dict[str, float]]:
    """Train one model with resolved options, and return the records of its evaluations.

    The result depends on nothing but the options: several runs may follow each other in one process.

    Raises:
        ValueError, OSError, MemoryError: see `detris_peft.training.train`; an option is invalid, or the data or a
            backbone cannot be used.
        TrainingInterrupted: after SIGINT or SIGTERM, once the run is saved.
    """
    run, source, backbones, training = all_options
    state.print(describe_recipe(run.preset, training))

    # Everything that can be refused is checked before the first file is written.
    folder = Path(training.output_dir) / "backbones"
    config, selected = create_config(run, backbones, folder)
    bad_rows = BadRows() if training.skip_bad_rows else None
    train_rows, val_rows = _load_rows(run, source, bad_rows, state)
    tokenizer = _create_tokenizer(backbones, config, run, source, train_rows)
    processor = DetrisProcessor.from_config(config, tokenizer)
    processor.keep_aspect_ratio = run.keep_aspect_ratio
    if training.push_to_hub:
        _check_push(config, training.push_to_hub)
    if not isinstance(train_rows, datasets.IterableDataset):
        _report_truncated(state, tokenizer, train_rows, config.max_text_length)

    def write_backbones() -> None:
        _check_run(training, train_rows, state)
        with lock(Path(training.output_dir)):  # a running process depends on its backbones
            for backbone in selected.values():
                backbone.write(training.overwrite)
            presets.random_backbones(config, folder, training.seed)

    if failure := run_on_all_ranks(state, write_backbones, main_only=True):
        raise ValueError(failure)
    presets.random_backbones(config, folder, training.seed)  # names them on the other ranks
    set_seed(training.seed)  # initialization of adapters and head
    model = DetrisForReferringSegmentation.from_backbones(
        load_backbone(config, "vision"), load_backbone(config, "text"), config, tokenizer
    )

    options = {**asdict(run), **asdict(source), **asdict(backbones)}
    return train(model, processor, train_rows, val_rows, training, options, bad_rows)


# -- arguments --------------------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None, prog: str | None = None) -> TrainOptions:
    """Parse the options. Precedence: command line, YAML file, recipe of the preset, defaults.

    Raises:
        ValueError: an option of the YAML file is unknown, or a value is outside its range.
        FileNotFoundError: the YAML file does not exist.
    """
    parser = create_parser(prog, _TITLE)
    parser.add_argument("--config", help="YAML file of options")
    words = [*(sys.argv[1:] if argv is None else argv)]
    file = parser.parse_args(words).config
    return resolve_options(read_options(file, option_types()) if file else {}, parser, words)


def create_parser(prog: str | None, description: str | None) -> CommandParser:
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
    parser = parser or create_parser(None, None)
    options = {_EARLIER_NAMES.get(name, name): value for name, value in options.items()}
    parser.set_defaults(**options)
    preset = parser.parse_args(words).preset
    parser.set_defaults(**{**presets.recipe(preset), **launcher_settings(), **options})
    run, source, backbones, training, *rest = parser.parse_args_into_dataclasses(words)
    run.config_fields = given_options(rest[0]) if rest else {}
    for kind in KINDS:
        name = run.config_fields.pop(f"{kind}_name_or_path", None)
        given = getattr(backbones, f"{kind}_model")
        if name and given and name != given:
            raise ValueError(f"expected --{kind}_model or --{kind}_name_or_path, got both; remove one of them.")
        setattr(backbones, f"{kind}_model", given or name)
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


def _warn_if_not_distributed(state: PartialState) -> None:
    if "MASTER_ADDR" in os.environ and state.num_processes == 1:
        state.print(
            "Warning: only one process was started, although a distributed launch was requested. `accelerate launch "
            "--cpu` starts several processes only with MPI; use --config_file examples/accelerate/cpu.yaml instead."
        )


def _check_run(training: TrainingArguments, train_rows: Any, state: PartialState) -> None:
    """Raise a ValueError for options that training would refuse, before backbones are written."""
    check_trackers(training.report_to)
    if training.resume is not None and training.resume != "latest":
        check_resume_folder(Path(training.resume))
    if not isinstance(train_rows, datasets.IterableDataset):
        count, accumulation = state.num_processes, training.gradient_accumulation_steps
        GlobalBatches(len(train_rows), training.batch_size, count, 0, accumulation, training.drop_last)
    check_output_dir(Path(training.output_dir), bool(training.resume), training.overwrite)


def _check_push(config: DetrisConfig, repository: str) -> None:
    """Raise a ValueError if the checkpoint could not be pushed after training, or not be loaded by others."""
    for kind in KINDS:
        if not getattr(config, f"{kind}_name_or_path"):
            raise ValueError(
                f"push_to_hub: expected a {kind} backbone on the Hub, got none, so that a random one would be written "
                f"to output_dir; pass --{kind}_model, or remove --push_to_hub."
            )
    check_backbones_on_hub(config)
    check_hub_access(repository)


# -- data -------------------------------------------------------------------------------------------------------------


def _load_rows(
    run: RunArguments, source: DataSource, bad_rows: BadRows | None, state: PartialState
) -> tuple[Any, Any]:
    """Load the training and validation rows, and check that they share no images."""
    train_rows = source.load_valid(run.train_split, bad_rows)
    val_rows: Any = replace(source, streaming=False).load_valid(run.val_split, bad_rows)
    if train_rows.info.description:  # notes of the reader, e.g. on train/test overlap in the mixed dataset
        state.print(train_rows.info.description)
    if not isinstance(train_rows, datasets.IterableDataset):
        check_leaks(train_rows, val_rows, source)
    return train_rows, val_rows


def check_leaks(
    train_rows: datasets.Dataset, val_rows: datasets.Dataset, source: DataSource, split: str = "validation"
) -> None:
    """Raise a ValueError if training images are scored, unless the dataset or `--leak keep` allows it."""
    shared = shared_images(train_rows, val_rows) if source.may_leak() is None else []
    if shared:
        name, copy_name = shared[0]
        raise ValueError(
            f"expected different images in the training and {split} splits, got {len(shared)} shared images "
            f"({name} is also {copy_name} in {split}), which would inflate the scores; remove them from one split "
            "(`detris data check` lists them), or set --leak keep."
        )


def _expressions(rows: datasets.Dataset) -> list[str]:
    return [sentence for sentences in rows["sentences"] for sentence in sentences]


def _report_truncated(
    state: PartialState, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, limit: int
) -> None:
    """Print how many expressions exceed max_text_length and are truncated."""
    notice = truncation_notice(tokenizer, _expressions(rows), limit)
    if notice:
        state.print(notice)


# -- model ------------------------------------------------------------------------------------------------------------


def create_config(
    run: RunArguments, arguments: BackboneArguments, folder: Path
) -> tuple[DetrisConfig, dict[str, Backbone]]:
    """Return the config of the model and its backbones, which decide their classes and sizes. Nothing is written.

    Args:
        run: the preset, and the given fields of `DetrisConfig`.
        arguments: options that select the backbones.
        folder: folder for backbones that have to be written.

    Raises:
        ValueError: a backbone cannot be used, or a field does not fit the others.
        OSError: a backbone cannot be read.
    """
    preset, given = presets.get(run.preset), run.config_fields
    selected = select_backbones(preset, arguments, given, folder)
    config = preset.scaled_to(*(copy.deepcopy(selected[kind].config) for kind in KINDS))
    for kind, backbone in selected.items():
        config.name_backbone(kind, backbone.name)
    return apply_config_options(config, given), selected


def _create_tokenizer(
    arguments: BackboneArguments, config: DetrisConfig, run: RunArguments, source: DataSource, train_rows: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the text encoder, or train one on the expressions of the training rows."""
    # Not the config's name, which is a folder below output_dir if the text encoder comes from an original file.
    name = arguments.tokenizer or arguments.text_model or presets.get(run.preset).text_name_or_path
    if name:
        revision = config.text_revision if name == config.text_name_or_path else None
        return load_tokenizer(name, revision or "main")
    if source.streaming:
        raise ValueError(
            f"--preset {run.preset}: expected a dataset to train a tokenizer on, got a stream; remove --streaming, or "
            "set --tokenizer."
        )
    return train_tokenizer(_expressions(train_rows), config.text_config.vocab_size)
