"""Checkpoints from which `detris train --init_from` cannot start, and unknown recipes."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.bad_inputs.case import Case, steps, write

TRAIN = "train --dataset refshapes --data_root data --num_workers 0 --epochs 1 --batch_size 2"
OUT = f"{TRAIN} --output_dir out"


def _remove(name: str):
    return lambda root: (root / name).unlink()


def _run_without_checkpoint(root: Path) -> None:
    shutil.rmtree(root / "run/best")
    (root / "run/checkpoints/step-00000004").mkdir(parents=True)


def _truncate(name: str):
    def prepare(root: Path) -> None:
        file = root / name
        file.write_bytes(file.read_bytes()[:100])

    return prepare


CASES = [
    Case("init_from is empty", f"{OUT} --init_from ''", ("--init_from: expected a folder or Hub id", "pass one")),
    Case(
        "init_from does not exist",
        f"{OUT} --init_from ./nowhere",
        ("--init_from ./nowhere: expected a folder or Hub id, found no such folder", "check the path"),
    ),
    Case("init_from is a file", f"{OUT} --init_from photo.png", ("--init_from photo.png: expected", "got a file")),
    Case("init_from is a run", f"{OUT} --init_from run", ("--init_from run: expected a checkpoint", "pass run/best")),
    Case(
        "init_from is a run without a checkpoint",
        f"{OUT} --init_from run",
        ("--init_from run: expected a checkpoint, got a run without one", "resume its training"),
        _run_without_checkpoint,
    ),
    Case(
        "init_from is a folder of something else",
        f"{OUT} --init_from data",
        ("--init_from data: expected a checkpoint, found no config.json", "check the path"),
    ),
    Case(
        "init_from has a truncated file",
        f"{OUT} --init_from run/best",
        ("--init_from run/best: ", "expected the weights that manifest.json describes", "head.safetensors"),
        _truncate("run/best/head.safetensors"),
    ),
    Case(
        "init_from lacks a file",
        f"{OUT} --init_from run/best",
        ("--init_from run/best: ", "adapter_model.safetensors is missing", "copy or download"),
        _remove("run/best/text_adapter/adapter_model.safetensors"),
    ),
    Case(
        "init_from has a damaged config",
        f"{OUT} --init_from run/best",
        ("--init_from run/best: ", "config.json"),
        write("run/best/config.json", "{"),
    ),
    Case(
        "init_from has no tokenizer",
        f"{OUT} --init_from run/best",
        ("--init_from run/best: ", "expected the processor's tokenizer.json, got none"),
        _remove("run/best/tokenizer.json"),
    ),
    Case(
        "init_from has another architecture",
        f"{OUT} --init_from run/best --hidden_dim 128",
        ("expected the architecture of the checkpoint", "hidden_dim: expected 64, got 128", "remove these options"),
    ),
    Case(
        "init_from would be deleted",
        f"{TRAIN} --init_from run/best --output_dir run --overwrite",
        (
            "--init_from run/best: expected a checkpoint outside run",
            "--overwrite deletes",
            "choose another output_dir",
        ),
    ),
    Case(
        "resumed run started from another checkpoint",
        f"{OUT} --init_from run/best --resume latest",
        ("--init_from: expected elsewhere/best", "got run/best", "pass --init_from elsewhere/best"),
        steps(
            write("out/checkpoints/step-00000001/progress.json", {}),
            write("out/run.json", {"options": {"init_from": "elsewhere/best"}, "versions": {}}),
        ),
    ),
    Case("unknown recipe", f"{OUT} --preset tiny --recipe many", ("recipe: expected one of few-images, got 'many'",)),
]
