"""A training run small enough to be started dozens of times: synthetic data, tiny random backbones."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import (
    DenseAlignerConfig,
    DetrisForReferringSegmentation,
    DetrisProcessor,
    TextAdapterConfig,
    atomic,
    presets,
)
from detris_peft.data import load_refer
from detris_peft.data.refshapes import write_refshapes
from detris_peft.tokenization_detris import train_tokenizer
from detris_peft.training import TrainingArguments, TrainingInterrupted, results, train

ADAM_STEP = torch.optim.Adam.step


def write_toys(root: Path) -> Path:
    """Write data and backbones to `root`."""
    write_refshapes(root, train=10, val=4, test=1, image_size=48)
    presets.random_backbones(presets.get("tiny"), root / "backbones")
    return root


def load_rows(root: Path):
    return tuple(load_refer(root, "refshapes", "unc", split) for split in ("train", "val"))


def adapter_configs(dropout: float = 0.0, **changes: Any) -> tuple[DenseAlignerConfig, TextAdapterConfig]:
    """Return small adapter configs; `changes` are fields of both."""
    vision = DenseAlignerConfig(
        dim=16,
        layers_to_transform=[1],
        text_dim=64,
        cross_attention_dim=16,
        cross_attention_heads=2,
        cross_attention_dropout=dropout,
        **changes,
    )
    return vision, TextAdapterConfig(dim=16, layers_to_transform=[0], **changes)


def load_model(root: Path, dropout: float = 0.0, **changes: Any) -> DetrisForReferringSegmentation:
    """Return a model with the same weights at each call; `changes` are fields of its config."""
    torch.manual_seed(0)
    config = presets.random_backbones(presets.get("tiny"), root / "backbones")
    config.image_size = 48
    config.dropout = dropout
    config.vision_adapter, config.text_adapter = adapter_configs(dropout)
    for name, value in changes.items():
        setattr(config, name, copy.deepcopy(value))
    vision = Dinov2WithRegistersModel.from_pretrained(config.vision_name_or_path)
    text = CLIPTextModelWithProjection.from_pretrained(config.text_name_or_path)
    return DetrisForReferringSegmentation.from_backbones(vision, text, config)


def load_processor(config, rows) -> DetrisProcessor:
    words = [sentence for sentences in rows["sentences"] for sentence in sentences]
    return DetrisProcessor.from_config(config, train_tokenizer(words, 160))


def save_checkpoint(root: Path, model: DetrisForReferringSegmentation, folder: str = "best") -> Path:
    """Save a model of `load_model` and its processor to a folder below `root`, and return the folder."""
    model.save_pretrained(root / folder)
    load_processor(model.config, load_rows(root)[0]).save_pretrained(root / folder)
    return root / folder


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Return arguments for the 20 training references of `write_toys`: four batches per epoch."""
    fields = {"output_dir": str(folder), "epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "milestones": [1]}
    return TrainingArguments(**{**fields, "num_workers": 0, **changes})


def omit_plots(patch: pytest.MonkeyPatch) -> None:
    """Let runs of this process write no curves and no predictions, which take most of the time of a tiny run."""
    for name in ("plot_curves", "plot_predictions"):
        patch.setattr(results, name, lambda *_: None)


def run(
    root: Path,
    folder: Path,
    die_at_sync: int = 0,
    gradients: str = "",
    dropout: float = 0.1,
    own_group: bool = False,
    double: bool = False,
    **changes: Any,
) -> None:
    """Train in this process.

    Args:
        root: folder of `write_toys`.
        folder: the run's output_dir.
        die_at_sync: kill the process in the middle of a save, at the sync with this number (1-based); 0: never.
        gradients: file for the gradients of the first step on the main rank, numbered in the order of the weights.
        own_group: create a new process group, and exit with the code of an interrupted command.
        double: train in float64, where rounding cannot move a ReLU's input across zero.
        changes: training arguments that differ from those of `arguments`.
    """
    if own_group:
        os.setpgrp()
    # A process of a fork server starts DataLoader workers as new interpreters, which import torch for seconds each.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    if die_at_sync:
        calls = iter(range(1, die_at_sync + 1))
        real = atomic._sync

        def sync(path: Path) -> None:
            if next(calls) == die_at_sync:
                os.kill(os.getpid(), signal.SIGKILL)
            real(path)

        atomic._sync = sync
    omit_plots(pytest.MonkeyPatch())
    rows = load_rows(root)
    model = load_model(root, dropout)
    if double:
        model.double()
    if gradients:
        _save_first_gradients(gradients)
    try:
        train(model, load_processor(model.config, rows[0]), *rows, arguments(folder, **changes))
    except TrainingInterrupted as stop:
        if own_group:
            sys.exit(128 + stop.signum)
        raise


def _save_first_gradients(file: str) -> None:
    real = torch.optim.Adam.step

    def step(optimizer, *args, **kwargs):
        if not os.path.exists(file):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            # All ranks take part in gathering sharded gradients.
            gathered = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in weights]
            PartialState().wait_for_everyone()
            if PartialState().is_main_process:
                save_file({str(i): gradient.clone() for i, gradient in enumerate(gathered)}, file)
            PartialState().wait_for_everyone()
        return real(optimizer, *args, **kwargs)

    torch.optim.Adam.step = step


def _let_fsdp_run_on_cpu() -> None:
    """Declare the CPU ranks GPU ranks: accelerate (1.15) supports FSDP on accelerators only, PyTorch on CPU too."""
    state = PartialState(cpu=True)
    state._shared_state.update(distributed_type=DistributedType.MULTI_GPU, device=torch.device("cpu"))


def main() -> None:
    """Run `toy_run.py ROOT CASES.json`: call `run` for each case, a dictionary of its arguments, in this launch."""
    root, cases = sys.argv[1:]
    for case in json.loads(Path(cases).read_text()):
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            _let_fsdp_run_on_cpu()
        run(Path(root), **{**case, "folder": Path(case["folder"])})
        AcceleratorState._reset_state()
        torch.optim.Adam.step = ADAM_STEP
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
    # Without the interpreter's teardown, in which a thread of gloo or FSDP can abort the process on a busy machine
    # ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
