"""Preparation of a model for training: precision, compilation, optimizer, and what accelerate adds."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..modeling import DetrisForReferringSegmentation
from ..modeling.casting import cast_model
from ..precision import precision_dtype
from ..prediction.compilation import check_compiler
from .arguments import TrainingArguments
from .distributed import is_sharded
from .ema import ExponentialMovingAverage
from .optimizer import create_optimizer
from .sync_batch_norm import convert_sync_batch_norm


def prepare_model(
    model: DetrisForReferringSegmentation, arguments: TrainingArguments, accelerator: Accelerator
) -> tuple[nn.Module, Any, ExponentialMovingAverage | None]:
    """Prepare a model for training, in place.

    Returns:
        The model and the optimizer as prepared by accelerate, and the average of the weights, if there is one.

    Raises:
        ValueError: there is nothing to train, or the arguments do not fit the device or the way of distribution.
    """
    sharded = is_sharded(accelerator)
    if arguments.ema_decay and sharded:
        raise ValueError(
            f"ema_decay: expected complete weights on each rank, got {accelerator.distributed_type.value}, which "
            "shards them; set ema_decay to 0, or train with DDP."
        )
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    cast_for_training(model, arguments.precision, accelerator)
    if accelerator.num_processes > 1:
        convert_sync_batch_norm(model, accelerator.device)
    if arguments.compile:
        check_compiler(accelerator.device)
        model.compile()  # in place, so that the names of the weights stay
    optimizer = create_optimizer(
        model,
        arguments.learning_rate,
        arguments.backbone_learning_rate,
        # In fp16, only the fused operation would know whether a step was skipped. Shards are tensors of another kind.
        fused=arguments.precision != "fp16" and not sharded,
    )
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    ema = ExponentialMovingAverage(model, arguments.ema_decay) if arguments.ema_decay else None
    return prepared, prepared_optimizer, ema


def cast_for_training(model: DetrisForReferringSegmentation, precision: str, accelerator: Accelerator) -> None:
    """Cast trained weights to at least float32, and frozen weights to the precision of the run, in place.

    In float32, frozen weights keep their dtype, and so do all weights with FSDP and DeepSpeed, which cast weights
    themselves, and shard only weights of one dtype.
    """
    if not is_sharded(accelerator):
        lower = precision != "fp32" and not model.config.train_backbones
        cast_model(model, precision_dtype(precision) if lower else None, trained_dtype=torch.float32)
