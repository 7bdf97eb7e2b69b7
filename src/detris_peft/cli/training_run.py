"""A training run from its options: data, backbones, model and training; implements `detris train`."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from torch import accelerator
from transformers import PreTrainedTokenizerBase, set_seed

from .. import presets
from ..data import BadRows
from ..data.sources import DataSource
from ..data.tools.leaks import shared_images
from ..modeling import DetrisConfig, DetrisForReferringSegmentation
from ..modeling.hub import check_backbones_on_hub, check_hub_access
from ..processing_detris import DetrisProcessor
from ..tokenization_detris import load_tokenizer, train_tokenizer
from ..training import TrainingArguments, TrainingInterrupted, train
from ..training.batching import GlobalBatches
from ..training.checkpoints import check_resume_folder
from ..training.checks import check_samples
from ..training.data_loading import create_samples
from ..training.distributed import run_on_all_ranks
from ..training.output_dir import check_output_dir, lock
from ..training.trackers import check_trackers
from .backbone_options import KINDS, BackboneArguments
from .backbone_selection import Backbone, load_backbone, select_backbones
from .checkpoint_options import truncation_notice
from .config_changes import apply_config_options, recipe_fields
from .initial_checkpoint import InitialCheckpoint, check_recorded, find_initial_checkpoint
from .train_options import RunArguments, TrainOptions, describe_recipe, with_recipe


def train_in_all_processes(options: TrainOptions) -> None:
    """Connect the processes, train, and disconnect them; errors as for `run_training`."""
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

    # Everything that can be refused is checked before the first file is written.
    folder = Path(training.output_dir) / "backbones"
    initial = _initial_checkpoint(run, training)
    config, selected = create_config(run, backbones, folder, initial)
    bad_rows = BadRows() if training.skip_bad_rows else None
    train_rows, val_rows = _load_rows(run, source, bad_rows, state)
    is_stream = isinstance(train_rows, datasets.IterableDataset)
    training = with_recipe(all_options, None if is_stream else len(train_rows), state.num_processes).training
    state.print(describe_recipe(run, training))
    if run.recipe is not None:
        fields = recipe_fields(config, presets.get_recipe(run.recipe), run.config_fields, is_new=initial is None)
        if fields:
            state.print(f"Recipe of {run.recipe}: " + ", ".join(f"{name}={value}" for name, value in fields.items()))
    if initial is None:
        tokenizer = _create_tokenizer(backbones, config, run, source, train_rows)
        processor = DetrisProcessor.from_config(config, tokenizer)
        processor.keep_aspect_ratio = bool(run.keep_aspect_ratio)
    else:
        processor = initial.load_processor(run, backbones, config)
        state.print(initial.description)
    if training.push_to_hub:
        _check_push(config, training.push_to_hub)
    if not is_stream:
        _report_truncated(state, processor.tokenizer, train_rows, config.max_text_length)

    def write_backbones() -> None:
        _check_run(training, train_rows, val_rows, processor, state)
        with lock(Path(training.output_dir)):  # a running process depends on its backbones
            for backbone in selected.values():
                backbone.write(training.overwrite)
            presets.random_backbones(config, folder, training.seed)

    if failure := run_on_all_ranks(state, write_backbones, main_only=True):
        raise ValueError(failure)
    presets.random_backbones(config, folder, training.seed)  # names them on the other ranks
    set_seed(training.seed)  # initialization of adapters and head
    if initial is None:
        model = DetrisForReferringSegmentation.from_backbones(
            load_backbone(config, "vision"), load_backbone(config, "text"), config, processor.tokenizer
        )
    else:
        model = initial.load_model(config, processor.tokenizer)

    options = {**asdict(run), **asdict(source), **asdict(backbones), "keep_aspect_ratio": processor.keep_aspect_ratio}
    options |= initial.record if initial else {}
    return train(model, processor, train_rows, val_rows, training, options, bad_rows)


def _initial_checkpoint(run: RunArguments, training: TrainingArguments) -> InitialCheckpoint | None:
    if run.init_from is None:
        check_recorded(None, training)
        return None
    return find_initial_checkpoint(run.init_from, training)


def _warn_if_not_distributed(state: PartialState) -> None:
    if "MASTER_ADDR" in os.environ and state.num_processes == 1:
        state.print(
            "Warning: only one process was started, although a distributed launch was requested. `accelerate launch "
            "--cpu` starts several processes only with MPI; use --config_file examples/accelerate/cpu.yaml instead."
        )


def _check_run(
    training: TrainingArguments, train_rows: Any, val_rows: Any, processor: DetrisProcessor, state: PartialState
) -> None:
    """Raise a ValueError for options that training would refuse, before backbones are written."""
    check_trackers(training.report_to)
    if training.resume is not None and training.resume != "latest":
        check_resume_folder(Path(training.resume))
    check_samples(processor, train_rows, val_rows, training)
    create_samples(train_rows, processor, training)
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
    return [sentence for sentences in rows["sentences"][:] for sentence in sentences]


def _report_truncated(
    state: PartialState, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, limit: int
) -> None:
    """Print how many expressions exceed max_text_length and are truncated."""
    notice = truncation_notice(tokenizer, _expressions(rows), limit)
    if notice:
        state.print(notice)


# -- model ------------------------------------------------------------------------------------------------------------


def create_config(
    run: RunArguments, arguments: BackboneArguments, folder: Path, initial: InitialCheckpoint | None = None
) -> tuple[DetrisConfig, dict[str, Backbone]]:
    """Return the config of the model and its backbones, which decide their classes and sizes. Nothing is written.

    Args:
        run: the preset, and the given fields of `DetrisConfig`.
        arguments: options that select the backbones.
        folder: folder for backbones that have to be written.
        initial: the checkpoint from which training starts.

    Raises:
        ValueError: a backbone cannot be used, or a field does not fit the others.
        OSError: a backbone cannot be read.
    """
    given = run.config_fields
    if initial is not None:
        config, selected = initial.create_config(run, arguments, folder)
    else:
        preset = presets.get(run.preset or presets.DEFAULT_PRESET)
        selected = select_backbones(preset, arguments, given, folder)
        config = preset.scaled_to(*(copy.deepcopy(selected[kind].config) for kind in KINDS))
        for kind, backbone in selected.items():
            config.name_backbone(kind, backbone.name)
        config = apply_config_options(config, given)
    if run.recipe is not None:
        recipe = presets.get_recipe(run.recipe)
        for name, value in recipe_fields(config, recipe, given, is_new=initial is None).items():
            owner, _, field = name.rpartition(".")
            setattr(getattr(config, owner) if owner else config, field, value)
    return config, selected


def _create_tokenizer(
    arguments: BackboneArguments, config: DetrisConfig, run: RunArguments, source: DataSource, train_rows: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the text encoder, or train one on the expressions of the training rows."""
    # Not the config's name, which is a folder below output_dir if the text encoder comes from an original file.
    preset = run.preset or presets.DEFAULT_PRESET
    name = arguments.tokenizer or arguments.text_model or presets.get(preset).text_name_or_path
    if name:
        revision = config.text_revision if name == config.text_name_or_path else None
        return load_tokenizer(name, revision or "main")
    if source.streaming:
        raise ValueError(
            f"--preset {preset}: expected a dataset to train a tokenizer on, got a stream; remove --streaming, or "
            "set --tokenizer."
        )
    return train_tokenizer(_expressions(train_rows), config.text_config.vocab_size)
