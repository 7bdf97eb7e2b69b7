"""How to train: one dataclass, whose fields are the options of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

import torch

from ..metrics import METRIC_NAMES

TRACKERS = ("tensorboard", "wandb", "trackio")


def _argument(default: Any, description: str) -> Any:
    return field(default_factory=lambda: default, metadata={"help": description})


@dataclass
class TrainingArguments:
    """How to train; the defaults are the paper's recipe for DETRIS-B. Each field is an option of the examples.

    Raises:
        ValueError: a value is out of its range; the message names the field.
    """

    output_dir: str = _argument("runs/detris", "folder for checkpoints, metrics and images")
    epochs: int = _argument(50, "visits of each reference")
    batch_size: int = _argument(32, "samples of a batch and process")
    eval_batch_size: int = _argument(32, "samples of an evaluation batch and process")
    learning_rate: float = _argument(1e-4, "of Adam")
    warmup_steps: int = _argument(0, "steps over which the learning rate rises from near 0 to its full value")
    milestones: list[int] = _argument([35], "epochs after which the learning rate is multiplied by gamma")
    gamma: float = _argument(0.1, "factor of the learning rate at a milestone")
    gradient_accumulation_steps: int = _argument(1, "batches to a step of the optimizer")
    max_grad_norm: float = _argument(0.0, "clip the gradient to this norm; 0 for no clipping")
    mixed_precision: str = _argument("no", "no, bf16 or fp16")
    gradient_checkpointing: bool = _argument(False, "recompute the backbones' blocks in the backward: less memory")
    ema_decay: float = _argument(0.0, "evaluate and save an exponential moving average of the trained weights; 0 = no")
    num_workers: int = _argument(2, "processes that read images, for each training process")
    seed: int = _argument(0, "of weights, order, sentences, dropout and augmentation")
    augment: bool = _argument(False, "flip (and swap left and right in the sentence), scale and recolor at random")
    skip_bad_rows: bool = _argument(False, "leave out rows that cannot be read, and list them; else stop at the first")
    on_nan: str = _argument("stop", "when the loss is not finite: stop, or skip the step and count it")
    eval_steps: int = _argument(0, "evaluate every so many steps; 0 = after each epoch")
    save_steps: int = _argument(0, "save a checkpoint every so many steps; 0 = at each evaluation")
    save_total_limit: int = _argument(2, "how many checkpoints to keep; best/ is kept beside them")
    resume: str | None = _argument(None, "latest, or a checkpoint's folder: go on from there")
    overwrite_output_dir: bool = _argument(False, "begin anew in a folder that holds a run: its checkpoints go")
    selection_metric: str = _argument("mIoU", "metric on the validation split that decides which checkpoint is best")
    early_stopping_patience: int = _argument(0, "stop after so many evaluations without a better one; 0 = never")
    report_to: list[str] = _argument([], f"trackers: {', '.join(TRACKERS)}")
    logging_steps: int = _argument(10, "log the loss to the trackers every so many steps")
    push_to_hub: str | None = _argument(None, "user/name: upload the best checkpoint there at the end")
    hub_private: bool = _argument(False, "make that repository a private one, if it is new")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():  # a YAML file may hold anything
            _check_type(name, getattr(self, name), kind)
        ranges = {
            "at least 1": ("epochs", "batch_size", "eval_batch_size", "gradient_accumulation_steps", "logging_steps"),
            "not below 0": ("max_grad_norm", "num_workers", "warmup_steps", "eval_steps", "save_steps"),
        }
        for name in (*ranges["at least 1"], "save_total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("learning_rate", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        for name in (*ranges["not below 0"], "early_stopping_patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be below 0.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be at least 0 and below 1.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} must be no, bf16 or fp16.")
        if self.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError('mixed_precision="fp16" needs a GPU: use "bf16" or "no" here.')
        if self.on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan={self.on_nan!r} must be stop or skip.")
        if self.selection_metric not in METRIC_NAMES:
            raise ValueError(f"selection_metric={self.selection_metric!r} must be one of {', '.join(METRIC_NAMES)}.")
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if unknown:
            raise ValueError(f"report_to={unknown} must be among {', '.join(TRACKERS)}.")
        if self.resume and self.overwrite_output_dir:
            raise ValueError("resume and overwrite_output_dir exclude each other: give one of them.")


def _check_type(name: str, value: Any, kind: Any) -> None:
    optional = type(None) in get_args(kind)
    if optional:
        if value is None:
            return
        kind = next(k for k in get_args(kind) if k is not type(None))
    several = get_origin(kind) is list
    item = get_args(kind)[0] if several else kind
    accepted = (int, float) if item is float else item
    items = value if several and isinstance(value, list) else [value]
    is_number = item in (int, float)
    if (
        isinstance(value, list) != several
        or not all(isinstance(i, accepted) for i in items)
        or (is_number and any(isinstance(i, bool) for i in items))
    ):
        raise ValueError(f"{name}={value!r} must be of type {kind if several else kind.__name__}.")
