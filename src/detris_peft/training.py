"""The training loop, over accelerate: one process or many, any precision that accelerate knows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data import Collator, EvaluationSamples, TrainingSamples, batches
from .evaluation import MODEL_INPUTS, evaluate, mean_over_processes
from .metrics import METRIC_NAMES, format_metrics
from .modeling import DetrisForReferringSegmentation
from .processing_detris import DetrisProcessor
from .visualization import plot_curves, plot_predictions


def _argument(default: Any, description: str) -> Any:
    return field(default_factory=lambda: default, metadata={"help": description})


@dataclass
class TrainingArguments:
    """How to train; the defaults are the paper's recipe for DETRIS-B. Each field is an option of the examples.

    Raises:
        ValueError: a value is out of its range; the message names the field.
    """

    output_dir: str = _argument("runs/detris", "folder for checkpoints, metrics and pictures")
    epochs: int = _argument(50, "visits of each reference")
    batch_size: int = _argument(32, "samples of a step and process")
    eval_batch_size: int = _argument(32, "samples of an evaluation step and process")
    learning_rate: float = _argument(1e-4, "of Adam")
    milestones: list[int] = _argument([35], "epochs after which the learning rate is multiplied by gamma")
    gamma: float = _argument(0.1, "factor of the learning rate at a milestone")
    gradient_accumulation_steps: int = _argument(1, "batches to a step of the optimizer")
    max_grad_norm: float = _argument(0.0, "clip the gradient to this norm; 0 for no clipping")
    mixed_precision: str = _argument("no", "no, bf16 or fp16")
    gradient_checkpointing: bool = _argument(False, "recompute the backbones' blocks in the backward: less memory")
    num_workers: int = _argument(2, "processes that read pictures, for each training process")
    seed: int = _argument(0, "of weights, order and sentences")
    selection_metric: str = _argument("mIoU", "metric on the validation split that decides which checkpoint is best")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():  # a YAML file may hold anything
            value = getattr(self, name)
            items = value if get_origin(kind) is list and isinstance(value, list) else [value]
            plain = {list[int]: int, float: (int, float)}.get(kind, kind)
            if isinstance(value, list) != (get_origin(kind) is list) or not all(isinstance(i, plain) for i in items):
                raise ValueError(f"{name}={value!r} must be of type {getattr(kind, '__name__', kind)}.")
        for name in ("epochs", "batch_size", "eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("learning_rate", "gamma"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        for name in ("max_grad_norm", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be below 0.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} must be no, bf16 or fp16.")
        if self.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError('mixed_precision="fp16" needs a GPU: use "bf16" or "no" here.')
        if self.selection_metric not in METRIC_NAMES:
            raise ValueError(f"selection_metric={self.selection_metric!r} must be one of {', '.join(METRIC_NAMES)}.")


def train(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    train_rows: datasets.Dataset,
    val_rows: datasets.Dataset,
    arguments: TrainingArguments,
) -> list[dict[str, float]]:
    """Train adapters and head; evaluate after each epoch; keep the best and the last checkpoint.

    Args:
        model: fresh or loaded; trained in place.
        processor: saved with every checkpoint.
        train_rows, val_rows: data sets with the columns of `detris_peft.data.FEATURES`.
        arguments: how.

    Returns:
        One record an epoch: `epoch`, `train_loss`, `learning_rate`, and the validation's `loss` and metrics by name.
        The same stands in `metrics.json` of `arguments.output_dir`, beside `best/`, `last/`, `curves.png` and
        `predictions.png`.

    Raises:
        ValueError: the data set is empty, or the loss is not finite.
    """
    if not len(train_rows) or not len(val_rows):
        raise ValueError(f"There are {len(train_rows)} rows to train on and {len(val_rows)} to validate: give both.")
    folder = Path(arguments.output_dir)
    for place in (folder, folder / "last", folder / "best"):
        if place.is_file():
            raise ValueError(f"{place} is a file where a folder is to be written: choose another output_dir.")
    accelerator = _accelerator(arguments)
    set_seed(arguments.seed)  # dropout; order and sentences come from the samples' own generator
    samples = TrainingSamples(train_rows, arguments.seed)
    validation = EvaluationSamples(val_rows)
    loader = DataLoader(
        samples, arguments.batch_size, num_workers=arguments.num_workers, collate_fn=Collator(processor)
    )
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place; the keys stay
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, arguments.milestones, arguments.gamma)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    history: list[dict[str, float]] = []
    for epoch in range(1, arguments.epochs + 1):
        loader.set_epoch(epoch)  # and with it the samples'
        learning_rate = schedule.get_last_lr()[0]
        steps = _run_epoch(prepared, optimizer, loader, accelerator, arguments, f"epoch {epoch}/{arguments.epochs}")
        train_loss = sum(steps) / len(steps)
        schedule.step()
        metrics = evaluate(
            prepared,
            processor,
            validation,
            accelerator=accelerator,
            batch_size=arguments.eval_batch_size,
            num_workers=arguments.num_workers,
        )
        history.append({"epoch": epoch, "train_loss": train_loss, "learning_rate": float(learning_rate), **metrics})
        named = format_metrics({name: metrics[name] for name in METRIC_NAMES})
        accelerator.print(f"epoch {epoch}: train loss {train_loss:.4f}  val {named}")
        if accelerator.is_main_process:
            best = max(history, key=lambda record: record[arguments.selection_metric])
            for name in ("last", "best") if best is history[-1] else ("last",):
                model.save_pretrained(folder / name)
                processor.save_pretrained(folder / name)
            _write_json(folder / "metrics.json", {"arguments": asdict(arguments), "best": best, "history": history})
            plot_curves(history, folder / "curves.png")
    if accelerator.is_main_process:
        plot_predictions(model, processor, validation, folder / "predictions.png")
    accelerator.wait_for_everyone()
    return history


def _accelerator(arguments: TrainingArguments) -> Accelerator:
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
    )


def _run_epoch(
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    accelerator: Accelerator,
    arguments: TrainingArguments,
    title: str,
) -> list[float]:
    """The mean loss over processes of each batch."""
    model.train()
    losses = []
    bar = tqdm(batches(loader), title, len(loader), unit="batch", leave=False, disable=not accelerator.is_main_process)
    for batch in bar:
        with accelerator.accumulate(model):
            loss = model(**{name: batch[name] for name in MODEL_INPUTS}).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients and arguments.max_grad_norm:
                accelerator.clip_grad_norm_(_trained(model), arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(mean_over_processes(accelerator, loss))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"The loss became {losses[-1]} in {title}, batch {len(losses)}, references "
                f"{batch['ref_ids'][:8]}...: lower learning_rate, set max_grad_norm, or use bf16 in place of fp16."
            )
        bar.set_postfix(loss=f"{losses[-1]:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.1e}")
    return losses


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """In one piece: a reader sees the old content or the new."""
    aside = file.with_suffix(".json.part")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(file)
