"""Score a saved checkpoint on any split of a dataset."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

from .. import DetrisForReferringSegmentation, DetrisProcessor
from ..data import EvaluationSamples
from ..data.errors import BadRows
from ..data.sources import DataSource
from ..evaluation import evaluate
from ..metrics import format_metrics

_TITLE = "Score a saved checkpoint on any split of a dataset."


@dataclass
class EvaluationArguments:
    checkpoint: str = field(metadata={"help": "folder or Hub repository of a trained model"})
    split: str = field(default="val", metadata={"help": "the split to score"})
    sentences: str | None = field(
        default=None, metadata={"help": "first or all; by default first for train and val, all for the others"}
    )
    shuffle_expressions: bool = field(
        default=False, metadata={"help": "give each image another one's sentence: how much does language matter?"}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "score the rows that can be read, and list the others; else stop at the first"},
    )
    batch_size: int = field(default=32, metadata={"help": "samples of a step and process"})
    num_workers: int = field(default=2, metadata={"help": "processes that read images"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    seed: int = field(default=0, metadata={"help": "of the shuffle"})
    output: str | None = field(default=None, metadata={"help": "JSON file for the metrics"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    classes: Any = (EvaluationArguments, DataSource)
    arguments, source = HfArgumentParser(classes, prog=prog, description=_TITLE).parse_args_into_dataclasses(argv)
    if source.streaming:
        raise ValueError("--streaming is for training: leave it out, an evaluation reads its split once as it is.")
    if arguments.output:  # before the work, not after it
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    bad_rows = BadRows() if arguments.skip_bad_rows else None
    rows = source.load(arguments.split, bad_rows)
    sentences = arguments.sentences or ("first" if arguments.split in ("train", "val") else "all")
    samples = EvaluationSamples(
        rows,
        sentences,
        arguments.shuffle_expressions,
        arguments.seed,
        skip_bad_rows=arguments.skip_bad_rows,
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=arguments.mixed_precision)
    metrics = evaluate(
        DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint),
        DetrisProcessor.from_pretrained(arguments.checkpoint),
        samples,
        accelerator=accelerator,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        bad_rows=bad_rows,
    )
    metrics.pop("loss")
    shuffled = ", sentences shuffled" if arguments.shuffle_expressions else ""
    accelerator.print(
        f"{source.dataset} {arguments.split} ({len(samples)} samples{shuffled}): {format_metrics(metrics)}"
    )
    if bad_rows:
        accelerator.print(f"{len(bad_rows)} bad rows were left out:")
        for error in bad_rows:
            accelerator.print(f"  {error.kind}: {error}")
    if arguments.output and accelerator.is_main_process:
        content = {**metrics, "samples": len(samples), "split": arguments.split, "sentences": sentences}
        content["shuffle_expressions"] = arguments.shuffle_expressions
        content["bad_rows"] = [str(error) for error in bad_rows or ()]
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
