"""Training options, output directories and checkpoints to resume from that `detris train` refuses."""

from __future__ import annotations

import json
from pathlib import Path

from detris_peft.manifest import write_manifest
from tests.bad_inputs.case import Case, steps, write

TRAIN = "train --preset tiny --dataset refshapes --data_root data --num_workers 0 --epochs 1 --batch_size 4"
OUT = f"{TRAIN} --output_dir out"
RUN = {"options": {}, "versions": {}}
CHECKPOINT = "out/checkpoints/step-00000001"


def option(text: str, expected: str, fix: str = "expected") -> Case:
    """Return a case with one option whose value is out of range."""
    name = text.split()[0].removeprefix("--")
    return Case(f"training option {text}", f"{OUT} {text}", (name, expected, fix))


def checkpoint(**files: object):
    """Return a function that writes a checkpoint with an intact manifest."""

    def prepare(root: Path) -> None:
        folder = root / CHECKPOINT
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        write_manifest(folder)
        (root / "out/run.json").write_text(json.dumps(RUN))

    return prepare


CASES = [
    option("--epochs 0", "at least 1, got 0"),
    option("--batch_size 0", "at least 1, got 0"),
    option("--eval_batch_size -2", "at least 1, got -2"),
    option("--learning_rate nan", "above 0 and finite, got nan"),
    option("--learning_rate inf", "above 0 and finite, got inf"),
    option("--gamma 0", "above 0 and finite, got 0.0"),
    option("--warmup_steps -1", "at least 0, got -1"),
    option("--gradient_accumulation_steps 0", "at least 1, got 0"),
    option("--max_grad_norm nan", "at least 0, got nan"),
    option("--precision int3", "one of auto, fp32, bf16, fp16, got 'int3'"),
    option("--ema_decay 1", "at least 0 and below 1, got 1.0"),
    option("--seed -1", "at least 0 and below 2^31, got -1"),
    option("--on_nan ignore", "one of stop, skip, got 'ignore'"),
    option("--eval_steps -1", "at least 0, got -1"),
    option("--save_total_limit 0", "at least 1, got 0"),
    option("--selection_metric IoU", "one of mIoU, oIoU", "got 'IoU'"),
    option("--report_to paper", "one of tensorboard, wandb, trackio, got 'paper'"),
    option("--resume ''", "a text that is not empty, got ''"),
    Case("resume and overwrite", f"{OUT} --resume latest --overwrite", ("resume or overwrite", "remove one of them")),
    Case("output_dir is blank", f"{TRAIN} --output_dir ' '", ("output_dir", "a text that is not empty")),
    Case("drop_last is not a bool", f"{OUT} --drop_last perhaps", ("drop_last", "perhaps"), code=2),
    Case(
        "dataset smaller than a batch",
        f"{OUT} --batch_size 1000",
        ("at most the", "rows of the training split", "got 1000", "smaller --batch_size", "--drop_last false"),
    ),
    Case(
        "tracker is not installed",
        f"{OUT} --report_to trackio",
        ("report_to", "package trackio", "run: pip install trackio"),
    ),
    Case(
        "output_dir is a file",
        OUT,
        ("out: expected a folder, got a file", "choose another output_dir"),
        write("out", "mine"),
    ),
    Case(
        "output_dir below a file",
        f"{TRAIN} --output_dir photo.png/run",
        ("photo.png/run", "Not a directory", "choose another output_dir"),
    ),
    Case(
        "best is a file",
        OUT,
        ("best: expected a folder, got a file", "choose another output_dir"),
        write("out/best", "mine"),
    ),
    Case(
        "output_dir holds a run",
        OUT,
        ("got checkpoints, best of an earlier run", "--resume latest", "--overwrite"),
        steps(checkpoint(), write("out/best/config.json", {})),
    ),
    Case(
        "best is a folder of something else",
        f"{OUT} --overwrite",
        ("expected a folder without best", "choose another output_dir"),
        write("out/best/thesis.txt", "mine"),
    ),
    Case(
        "checkpoint to resume from does not exist",
        f"{OUT} --resume nowhere",
        ("resume: expected latest or a", "got nowhere"),
    ),
    Case(
        "checkpoint to resume from is a model",
        f"{OUT} --resume run/best",
        (
            "resume: expected latest or a checkpoint folder",
            "run/best, which has no progress.json",
            "pass latest",
        ),
    ),
    Case(
        "checkpoint to resume from is the folder of a run",
        f"{OUT} --resume run",
        ("got run, which has no progress.json", "pass latest, or a folder checkpoints/step-..."),
    ),
    Case(
        "checkpoint of an earlier version",
        f"{OUT} --resume latest",
        ("expected fingerprint.json, got none", "--overwrite"),
        checkpoint(progress={}),
        may_write=("out",),
    ),
    Case(
        "checkpoint of another run",
        f"{OUT} --resume latest",
        ("belongs to a different run", "batch_size: expected 4, got 9", "set the options"),
        checkpoint(progress={}, fingerprint={"batch_size": 9}),
        may_write=("out",),
    ),
    Case(
        "fingerprint is a list",
        f"{OUT} --resume {CHECKPOINT}",
        ("fingerprint.json: expected an object of options, got list", "another checkpoint"),
        checkpoint(progress={}, fingerprint=[1]),
        may_write=("out",),
    ),
    Case(
        "fingerprint is damaged",
        f"{OUT} --resume latest",
        ("No intact checkpoint found", "fingerprint.json has", "expected"),
        steps(checkpoint(fingerprint={}), write(f"{CHECKPOINT}/fingerprint.json", "{")),
        may_write=("out",),
    ),
]
