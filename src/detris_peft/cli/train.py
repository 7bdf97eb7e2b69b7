"""Train DETRIS on any dataset: RefCOCO, RefCOCO+, G-Ref, mixed, gRefCOCO, RefShapes, your own, or one from the Hub."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import datasets
import yaml
from accelerate import PartialState
from torch import accelerator
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, set_seed

from .. import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor, presets
from ..data import BadRows
from ..data.sources import DataSource
from ..errors import one_line
from ..modeling.hub import check_backbones_on_hub, check_hub_access
from ..tokenization_detris import count_tokens, train_tokenizer
from ..training import TrainingArguments, TrainingInterrupted, train
from .backbone_options import BackboneArguments, load_backbone, name_backbones

_TITLE = (
    "Train DETRIS on any dataset: the RefCOCO family, your own, or one from the Hub. Options that are not given are "
    "taken from the YAML file (--config), then from the preset's recipe, then from the defaults below."
)


@dataclass
class RunArguments:
    """Options of `detris train` for the model and the splits."""

    preset: str = field(
        default="detris-b",
        metadata={"help": "architecture and training recipe: " + ", ".join(presets.list_presets())},
    )
    train_split: str = field(default="train", metadata={"help": "training split"})
    val_split: str = field(default="val", metadata={"help": "validation split"})
    position_interpolation: Literal["backbone", "official"] = field(
        default="backbone",
        metadata={
            "help": "interpolation of DINOv2's position embeddings: backbone, or official as in the released weights"
        },
    )
    keep_aspect_ratio: bool = field(
        default=False, metadata={"help": "pad each batch to its smallest bounding canvas instead of a square"}
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train with the given arguments; default: those of the command line."""
    run, source, backbones, training = parse_arguments(argv, prog)
    if find_spec("matplotlib") is None:
        raise ValueError("expected matplotlib, which plots the curves; run: pip install 'detris-peft[train]'.")
    state = PartialState(cpu=not accelerator.is_available())
    _warn_if_not_distributed(state)
    state.print(describe_recipe(run.preset, training))

    bad_rows = BadRows() if training.skip_bad_rows else None
    train_rows, val_rows = _load_rows(run, source, bad_rows, state)
    set_seed(training.seed)  # initialization of adapters and head
    config, tokenizer_name = _create_config(run, backbones, training, state)
    tokenizer = _create_tokenizer(tokenizer_name, config, run, source, train_rows)
    if training.push_to_hub:  # fail before training, not after it
        check_backbones_on_hub(config)
        check_hub_access(training.push_to_hub)
    model, processor = _create_model(config, tokenizer, tokenizer_name, run)
    if not isinstance(train_rows, datasets.IterableDataset):
        _report_truncated(state, tokenizer, train_rows, config.max_text_length)

    options = {**asdict(run), **asdict(source), **asdict(backbones)}
    try:
        train(model, processor, train_rows, val_rows, training, options, bad_rows)
    except TrainingInterrupted:
        state.destroy_process_group()
        raise
    state.destroy_process_group()  # not after an error on one rank: the others may block


# -- arguments --------------------------------------------------------------------------------------------------------


def parse_arguments(
    argv: Sequence[str] | None, prog: str | None = None
) -> tuple[RunArguments, DataSource, BackboneArguments, TrainingArguments]:
    """Parse the options. Precedence: command line, YAML file, recipe of the preset, defaults.

    Raises:
        ValueError: an option of the YAML file is unknown, or a value is outside its range.
        FileNotFoundError: the YAML file does not exist.
    """
    classes: Any = (RunArguments, DataSource, BackboneArguments, TrainingArguments)
    parser = HfArgumentParser(classes, prog=prog, description=_TITLE)
    parser.add_argument("--config", help="YAML file of options")
    argv = None if argv is None else list(argv)
    file = parser.parse_known_args(argv)[0].config
    options = _read_yaml(file, {action.dest for action in parser._actions}) if file else {}
    parser.set_defaults(**options)
    preset = parser.parse_known_args(argv)[0].preset
    parser.set_defaults(**{**presets.recipe(preset), **options})
    run, source, backbones, training, _ = parser.parse_args_into_dataclasses(argv)
    return run, source, backbones, training


def _read_yaml(file: str, known: set[str]) -> dict[str, Any]:
    """Read a YAML file of options, and check their names."""
    try:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"--config: expected a YAML file of options, got {file}: no such file.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: expected YAML, got an error while parsing it: {one_line(error)}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{file}: expected options such as `batch_size: 32`, got a {type(options).__name__}.")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{file}: expected names of options, got {', '.join(map(str, unknown))}; see --help.")
    return options


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


# -- data -------------------------------------------------------------------------------------------------------------


def _load_rows(
    run: RunArguments, source: DataSource, bad_rows: BadRows | None, state: PartialState
) -> tuple[Any, Any]:
    """Load the training and validation rows, and check that they share no images."""
    train_rows = source.load(run.train_split, bad_rows)
    val_rows: Any = replace(source, streaming=False).load(run.val_split, bad_rows)
    if train_rows.info.description:  # notes of the reader, e.g. on train/test overlap in the mixed dataset
        state.print(train_rows.info.description)
    if not isinstance(train_rows, datasets.IterableDataset):
        check_leaks(train_rows, val_rows, source)
    return train_rows, val_rows


def check_leaks(train_rows: datasets.Dataset, val_rows: datasets.Dataset, source: DataSource) -> None:
    """Raise a ValueError if training images are validated on, unless the dataset or `--leak keep` allows it."""
    shared = sorted(set(train_rows["file_name"]) & set(val_rows["file_name"]))
    if shared and source.may_leak() is None:
        raise ValueError(
            f"expected different images in the training and validation splits, got {len(shared)} shared images "
            f"({shared[0]}, ...), which would inflate the scores; remove them from one split (`detris data check` "
            "lists them), or set --leak keep."
        )


def _expressions(rows: datasets.Dataset) -> list[str]:
    return [sentence for sentences in rows["sentences"] for sentence in sentences]


def _report_truncated(
    state: PartialState, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, limit: int
) -> None:
    """Print how many expressions exceed max_text_length and are truncated."""
    texts = _expressions(rows)
    long = [text for text, count in zip(texts, count_tokens(tokenizer, texts), strict=True) if count > limit]
    if long:
        state.print(
            f"{len(long)} of {len(texts)} expressions have more than {limit} tokens and are truncated, as in the "
            f"paper: {long[0]!r}, ..."
        )


# -- model ------------------------------------------------------------------------------------------------------------


def _create_config(
    run: RunArguments, backbones: BackboneArguments, training: TrainingArguments, state: PartialState
) -> tuple[DetrisConfig, str | None]:
    """Return the config with named backbones, and the tokenizer's name, or None if a tokenizer has to be trained."""
    config = presets.get(run.preset)
    config.position_interpolation = run.position_interpolation
    tokenizer_name = backbones.tokenizer or backbones.text_model or config.text_name_or_path
    folder = Path(training.output_dir) / "backbones"
    with state.main_process_first():
        name_backbones(config, backbones, folder)
        presets.random_backbones(config, folder, training.seed)  # for presets without pretrained backbones
    return config, tokenizer_name


def _create_tokenizer(
    name: str | None, config: DetrisConfig, run: RunArguments, source: DataSource, train_rows: Any
) -> PreTrainedTokenizerBase:
    """Load the named tokenizer, or train one on the expressions of the training rows."""
    if name:
        return AutoTokenizer.from_pretrained(name)
    if source.streaming:
        raise ValueError(
            f"--preset {run.preset}: expected a dataset to train a tokenizer on, got a stream; remove --streaming, or "
            "set --tokenizer."
        )
    return train_tokenizer(_expressions(train_rows), config.text_config.vocab_size)


def _create_model(
    config: DetrisConfig, tokenizer: PreTrainedTokenizerBase, tokenizer_name: str | None, run: RunArguments
) -> tuple[DetrisForReferringSegmentation, DetrisProcessor]:
    """Return the model, with loaded backbones and a new head and adapters, and its processor."""
    model = DetrisForReferringSegmentation.from_backbones(
        load_backbone(config, "vision"), load_backbone(config, "text"), config
    )
    vocab_size = model.config.text_config.vocab_size
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer_name}: expected at most {vocab_size} tokens, the vocabulary of the text encoder, "
            f"got {len(tokenizer)}; set --tokenizer to the text encoder's own."
        )
    processor = DetrisProcessor.from_config(config, tokenizer)
    processor.keep_aspect_ratio = run.keep_aspect_ratio
    return model, processor
