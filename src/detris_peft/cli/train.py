"""Train DETRIS on any dataset: RefCOCO, RefCOCO+, G-Ref, mixed, gRefCOCO, RefShapes, your own, or the Hub's."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import PartialState
from transformers import AutoTokenizer, HfArgumentParser, set_seed

from .. import DetrisForReferringSegmentation, DetrisProcessor, presets
from ..data import BadRows
from ..data.sources import DataSource
from ..modeling.hub import check_backbones_on_hub, check_hub_access
from ..tokenization_detris import count_tokens, train_tokenizer
from ..training import TrainingArguments, TrainingInterrupted, train
from .backbone_options import BackboneArguments, load_backbone, name_backbones

_TITLE = "Train DETRIS on any dataset: RefCOCO's family, your own, or the Hub's."


@dataclass
class RunArguments:
    preset: str = field(default="detris-b", metadata={"help": "architecture: " + ", ".join(presets.list())})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    val_split: str = field(default="val", metadata={"help": "split to validate on after each epoch"})
    position_interpolation: str = field(
        default="backbone", metadata={"help": "DINOv2's position table: backbone, or official as the released weights"}
    )
    keep_aspect_ratio: bool = field(
        default=False, metadata={"help": "batches on the smallest canvas that holds them, not on a square"}
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    run, source, backbones, training = parse_arguments(argv, prog)
    if find_spec("matplotlib") is None:
        raise ValueError("The curves need matplotlib: pip install 'detris-peft[train]'.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    if "MASTER_ADDR" in os.environ and state.num_processes == 1:
        state.print(
            "One process was started, though several seem to be meant: `accelerate launch --cpu` starts one unless MPI"
            " is installed; --config_file examples/accelerate/cpu.yaml starts more."
        )
    bad_rows = BadRows() if training.skip_bad_rows else None
    train_rows = source.load(run.train_split, bad_rows)
    val_rows: Any = replace(source, streaming=False).load(run.val_split, bad_rows)

    if train_rows.info.description:  # what a reader has to say: the mixed set's, of leaks
        state.print(train_rows.info.description)
    if not isinstance(train_rows, datasets.IterableDataset):
        check_leaks(train_rows, val_rows, source)

    set_seed(training.seed)  # the fresh adapters and head
    config = presets.get(run.preset)
    config.position_interpolation = run.position_interpolation
    vocabulary = backbones.tokenizer or backbones.text_model or config.text_name_or_path
    folder = Path(training.output_dir) / "backbones"
    with state.main_process_first():
        name_backbones(config, backbones, folder)
        presets.random_backbones(config, folder, training.seed)  # where neither preset nor options name any
    if vocabulary:
        tokenizer = AutoTokenizer.from_pretrained(vocabulary)
    elif source.streaming:
        raise ValueError(f"--preset {run.preset} makes its tokenizer from all sentences: leave out --streaming.")
    else:
        words = [sentence for sentences in train_rows["sentences"] for sentence in sentences]
        tokenizer = train_tokenizer(words, config.text_config.vocab_size)
    if training.push_to_hub:  # what would be refused after the training is refused before it
        check_backbones_on_hub(config)
        check_hub_access(training.push_to_hub)
    model = DetrisForReferringSegmentation.from_backbones(
        load_backbone(config, "vision"), load_backbone(config, "text"), config
    )
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer {vocabulary} has {len(tokenizer)} tokens, the text encoder knows "
            f"{model.config.text_config.vocab_size}: give the encoder's own as --tokenizer."
        )
    processor = DetrisProcessor.from_config(config, tokenizer)
    processor.keep_aspect_ratio = run.keep_aspect_ratio
    if not isinstance(train_rows, datasets.IterableDataset):
        say_what_is_cut(state, tokenizer, train_rows, config.max_text_length)
    options = {**asdict(run), **asdict(source), **asdict(backbones)}
    try:
        train(model, processor, train_rows, val_rows, training, options, bad_rows)
    except TrainingInterrupted:
        state.destroy_process_group()
        raise
    state.destroy_process_group()  # not after a fault of one process: the others may be waiting in it


def check_leaks(train_rows: datasets.Dataset, val_rows: datasets.Dataset, source: DataSource) -> None:
    """Raise a ValueError if images of the training stand in the validation, unless they may."""
    shared = sorted(set(train_rows["file_name"]) & set(val_rows["file_name"]))
    if shared and source.may_leak() is None:
        raise ValueError(
            f"{len(shared)} images to train on are validated on too, {shared[0]} among them, so the scores would be "
            "too good: take them out of one split (`detris data check` lists them), or give --leak keep."
        )


def say_what_is_cut(state: PartialState, tokenizer: Any, rows: datasets.Dataset, limit: int) -> None:
    """A line about sentences that the text encoder does not read to their end: the method cuts them."""
    texts = [sentence for sentences in rows["sentences"] for sentence in sentences]
    long = [text for text, count in zip(texts, count_tokens(tokenizer, texts), strict=True) if count > limit]
    if long:
        state.print(
            f"{len(long)} of {len(texts)} sentences have more than {limit} tokens and are cut, as the method does: "
            f"{long[0]!r}, ..."
        )


def parse_arguments(
    argv: Sequence[str] | None, prog: str | None
) -> tuple[RunArguments, DataSource, BackboneArguments, TrainingArguments]:
    classes: Any = (RunArguments, DataSource, BackboneArguments, TrainingArguments)
    parser = HfArgumentParser(classes, prog=prog, description=_TITLE)
    parser.add_argument("--config", help="YAML file of options")
    file = parser.parse_known_args(argv)[0].config
    if file:
        try:
            options = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file {file}: --config takes a YAML file of options.") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(options, dict):
            raise ValueError(f"{file} must hold options by name, `batch_size: 32`, not a {type(options).__name__}.")
        unknown = sorted(set(options) - {action.dest for action in parser._actions})
        if unknown:
            raise ValueError(f"{file}: there is no option {', '.join(unknown)}; see --help.")
        parser.set_defaults(**options)
    run, source, backbones, training, _ = parser.parse_args_into_dataclasses(argv)
    return run, source, backbones, training
