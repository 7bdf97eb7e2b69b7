"""Training arguments, which are also options of the command line."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_type_hints

from typing_extensions import Self

from ..field_types import describe_type, has_type
from ..metric_names import METRIC_NAMES
from ..precision import EARLIER_OPTIONS, PRECISIONS, describe_replacement, resolve_precision
from .launcher import launched_on_cpu, launcher_settings

TRACKERS = ("tensorboard", "wandb", "trackio")


class Range(NamedTuple):
    """Accepted values of an option.

    Attributes:
        description: completes "expected ..." in an error message, and is shown by `--help`.
        contains: whether a value is accepted; for a list option it is called with each item.
    """

    description: str
    contains: Callable[[Any], bool]


def _at_least(minimum: int) -> Range:
    return Range(f"at least {minimum}", lambda value: value >= minimum)


def _one_of(choices: Sequence[str]) -> Range:
    return Range(f"one of {', '.join(choices)}", lambda value: value in choices)


_POSITIVE = Range("above 0 and finite", lambda value: 0 < value < math.inf)
_NOT_EMPTY = Range("a text that is not empty", lambda value: bool(value.strip()) and "\0" not in value)
_SEED = Range("at least 0 and below 2^31", lambda value: 0 <= value < 1 << 31)
_BENCHMARK = Range(
    f"user/dataset:task_id:metric, where metric is one of {', '.join(METRIC_NAMES)}",
    lambda value: (
        re.fullmatch(rf"[\w.-]+/[\w.-]+:[^\s:]+:({'|'.join(map(re.escape, METRIC_NAMES))})", value) is not None
    ),
)
_LAUNCHER_DEFAULTS = {"precision": "fp32", "gradient_accumulation_steps": 1}
_FRACTION = Range("at least 0 and below 1", lambda value: 0 <= value < 1)


class _StoreOption(argparse.Action):
    """Action `store` that accepts the metadata of a field.

    `HfArgumentParser` passes all metadata to `add_argument`, which rejects what argparse does not know. It also takes
    False as the default of a bool field with a default factory.
    """

    def __init__(
        self, *args: Any, range: Range | None, may_change_on_resume: bool, initial: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **{**kwargs, "default": copy(initial)})

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)


def _argument(
    default: Any,
    help: str,
    range: Range | None = None,
    *,
    may_change_on_resume: bool = False,
    aliases: Sequence[str] = (),
) -> Any:
    """Declare an option.

    Args:
        default: copied for each instance.
        help: shown by `--help`, followed by the range.
        range: the accepted values; None accepts every value of the field's type.
        may_change_on_resume: whether a resumed run may use another value, because it does not change what a training
            step computes or which evaluation is the best.
        aliases: further names of the option on the command line.
    """
    metadata = {
        "help": f"{help} [{range.description}]" if range else help,
        "range": range,
        "may_change_on_resume": may_change_on_resume,
        "initial": default,
        "aliases": list(aliases),
        "action": _StoreOption,
    }
    return field(default_factory=lambda: copy(default), metadata=metadata)


@dataclass
class TrainingArguments:
    """Training arguments. The defaults are the paper's recipe for DETRIS-B in float32; see also `presets.recipe`.

    Each field is an option of `detris train`, and its metadata is the only declaration of its help, its range and
    whether it may change on resume. `precision` and `gradient_accumulation_steps` are by default what
    `accelerate launch` sets, else "fp32" and 1. `precision="auto"` is replaced by the precision of the device.

    Raises:
        ValueError: a value is outside its range; the message names the field.
        TypeError: there is no such field.
    """

    output_dir: str = _argument(
        "runs/detris", "folder for checkpoints, metrics and images", _NOT_EMPTY, may_change_on_resume=True
    )
    epochs: int = _argument(
        50,
        "number of epochs; each visits every reference once (but see drop_last)",
        _at_least(1),
        may_change_on_resume=True,
    )
    batch_size: int = _argument(32, "training batch size per process", _at_least(1))
    drop_last: bool = _argument(
        True, "drop the last, incomplete batch of an epoch, as published; false: train on it as well"
    )
    eval_batch_size: int = _argument(32, "evaluation batch size per process", _at_least(1), may_change_on_resume=True)
    learning_rate: float = _argument(1e-4, "learning rate of Adam", _POSITIVE)
    backbone_learning_rate: float | None = _argument(
        None,
        "learning rate of adapters, or of both encoders with train_backbones; default: learning_rate",
        _POSITIVE,
    )
    warmup_steps: int = _argument(0, "optimizer steps of linear learning-rate warm-up", _at_least(0))
    milestones: list[int] = _argument([35], "epochs after which the learning rate is multiplied by gamma")
    gamma: float = _argument(0.1, "factor of the learning rate at each milestone", _POSITIVE)
    gradient_accumulation_steps: int = _argument(
        None, "batches per optimizer step; if not set, the value of accelerate launch, or 1", _at_least(1)
    )
    max_grad_norm: float = _argument(0.0, "clip the gradient to this norm; 0 disables clipping", _at_least(0))
    precision: str = _argument(
        None,
        "precision of the forward pass and of the frozen weights; auto: bf16 on a GPU or CPU with bf16 instructions, "
        "else fp32; if not set, the value of accelerate launch, or fp32",
        _one_of(PRECISIONS),
    )
    gradient_checkpointing: bool = _argument(
        False, "recompute the backbones' blocks in the backward pass to save memory", may_change_on_resume=True
    )
    compile: bool = _argument(
        False,
        "compile the model with torch.compile; the first step and the first evaluation then take minutes",
        may_change_on_resume=True,
    )
    ema_decay: float = _argument(
        0.0,
        "evaluate and save an exponential moving average of the trained weights, whose decay after step n is "
        "min(this value, (1 + n) / (10 + n)); 0 disables it",
        _FRACTION,
    )
    num_workers: int = _argument(2, "DataLoader workers per process", _at_least(0), may_change_on_resume=True)
    seed: int = _argument(0, "random seed (weights, data order, expressions, dropout, augmentation)", _SEED)
    augment: bool = _argument(False, "mirror (see augment_mirror), scale and recolor images at random")
    augment_mirror: bool = _argument(
        True,
        "with augment: mirror images, and swap left and right in the expression, where the expression is English and "
        "known to be true of the mirrored image; false: never mirror",
    )
    no_target_ratio: float = _argument(
        0.0,
        "probability of replacing the expression by one that refers to nothing in the image, with an empty mask; the "
        "validation split is then also scored on such pairs (N-acc, T-acc)",
        _FRACTION,
    )
    mosaic_ratio: float = _argument(
        0.0, "probability of making the image one tile of a 2x2 mosaic with three images of other scenes", _FRACTION
    )
    distill_masked_view: bool = _argument(
        False,
        "also train on a view with masked image blocks and tokens, whose target is the prediction for the clean view; "
        "a step then has two forward passes",
    )
    distill_block_size: int = _argument(32, "side of the masked image blocks in pixels", _at_least(1))
    distill_image_ratio: float = _argument(0.75, "share of the image blocks that are masked", _FRACTION)
    distill_token_ratio: float = _argument(0.15, "probability of altering a token of the masked view", _FRACTION)
    distill_mask_token: str = _argument(
        "the", "mask token if the tokenizer has none, as that of CLIP: a word that is one token", _NOT_EMPTY
    )
    skip_bad_rows: bool = _argument(
        False, "skip and list invalid rows; otherwise stop at the first one", may_change_on_resume=True
    )
    on_nan: str = _argument(
        "stop",
        "if the loss is not finite: stop, or skip the batch and count it",
        _one_of(("stop", "skip")),
        may_change_on_resume=True,
    )
    eval_steps: int = _argument(
        0, "evaluate every N optimizer steps; 0: after every epoch", _at_least(0), may_change_on_resume=True
    )
    save_steps: int = _argument(
        0, "save a checkpoint every N optimizer steps; 0: at every evaluation", _at_least(0), may_change_on_resume=True
    )
    save_total_limit: int = _argument(
        2, "number of checkpoints to keep, in addition to best/ and last/", _at_least(1), may_change_on_resume=True
    )
    resume: str | None = _argument(
        None, "checkpoint folder to resume from, or latest for the newest one", _NOT_EMPTY, may_change_on_resume=True
    )
    overwrite: bool = _argument(
        False,
        "start again in an output_dir that holds a run; its checkpoints, best and last are deleted",
        may_change_on_resume=True,
        aliases=("--overwrite_output_dir",),
    )
    selection_metric: str = _argument(
        "mIoU", "validation metric that selects the best checkpoint", _one_of(METRIC_NAMES)
    )
    early_stopping_patience: int = _argument(
        0, "stop after N evaluations without a new best one; 0 disables it", _at_least(0), may_change_on_resume=True
    )
    report_to: list[str] = _argument([], "experiment trackers", _one_of(TRACKERS), may_change_on_resume=True)
    logging_steps: int = _argument(
        10, "log the loss to the trackers every N optimizer steps", _at_least(1), may_change_on_resume=True
    )
    push_to_hub: str | None = _argument(
        None,
        "Hub repository (user/name) to upload the best checkpoint to after training",
        _NOT_EMPTY,
        may_change_on_resume=True,
    )
    hub_private: bool = _argument(
        False, "create the Hub repository as private, if it does not exist", may_change_on_resume=True
    )
    card_image: str = _argument(
        "auto",
        "add an image of predictions to the model cards of best/ and last/, and so to what is pushed; it shows "
        "validation images; auto: only for the generated images of RefShapes",
        _one_of(("auto", "always", "never")),
        may_change_on_resume=True,
    )
    hub_benchmark: list[str] = _argument(
        [],
        "benchmarks of the Hub whose data is the validation split, as user/dataset:task_id:metric; the score is "
        "written to .eval_results/ in best/ and last/, and pushed with them",
        _BENCHMARK,
        may_change_on_resume=True,
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        for name in EARLIER_OPTIONS:
            if name in kwargs:
                raise TypeError(f"{describe_replacement(name, kwargs[name])}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.output_dir, os.PathLike):
            self.output_dir = os.fspath(self.output_dir)
        for name, value in {**_LAUNCHER_DEFAULTS, **launcher_settings()}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        types = get_type_hints(type(self))
        for option in fields(self):
            value, expected = getattr(self, option.name), types[option.name]
            if not has_type(value, expected):  # a YAML file may hold anything
                raise ValueError(f"{option.name}: expected {describe_type(expected)}, got {value!r}.")
            if isinstance(value, tuple):  # equal to the list that a resumed run reads from run.json
                setattr(self, option.name, value := list(value))
            _check_range(option.name, value, option.metadata["range"])
        self.precision = resolve_training_precision(self.precision)
        if self.resume and self.overwrite:
            raise ValueError(f"expected resume or overwrite, got both (resume={self.resume!r}); remove one of them.")


def resolve_training_precision(precision: str) -> str:
    """Return the precision of a training run on the device that accelerate would choose; see `resolve_precision`."""
    return resolve_precision(precision, "cpu" if launched_on_cpu() else None, training=True)


def _check_range(name: str, value: Any, accepted: Range | None) -> None:
    if value is None:  # an option that is not set
        return
    for item in value if isinstance(value, list) else [value]:
        if accepted is not None and not accepted.contains(item):
            raise ValueError(f"{name}: expected {accepted.description}, got {item!r}.")
