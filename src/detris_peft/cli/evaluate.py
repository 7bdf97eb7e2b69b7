"""Score a saved checkpoint on any split of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

from .. import DetrisForReferringSegmentation, DetrisProcessor
from ..atomic import write_json
from ..data import EvaluationSamples
from ..data.errors import BadRows
from ..data.sources import DataSource
from ..evaluation import evaluate
from ..metrics import format_metrics


@dataclass
class EvaluationArguments:
    """Options of `detris evaluate`."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of a trained model"})
    split: str = field(default="val", metadata={"help": "split to score"})
    sentences: str | None = field(
        default=None,
        metadata={"help": "expressions per reference: first or all; default: first for train and val, else all"},
    )
    shuffle_expressions: bool = field(
        default=False, metadata={"help": "ablation: pair each image with another image's expression"}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "skip and list invalid rows; default: stop at the first one"},
    )
    batch_size: int = field(default=32, metadata={"help": "batch size per process"})
    num_workers: int = field(default=2, metadata={"help": "DataLoader workers per process"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    seed: int = field(default=0, metadata={"help": "random seed of --shuffle_expressions"})
    output: str | None = field(default=None, metadata={"help": "JSON file for the metrics"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris evaluate` with these arguments; default: those of the command line."""
    classes: Any = (EvaluationArguments, DataSource)
    arguments, source = HfArgumentParser(classes, prog=prog, description=__doc__).parse_args_into_dataclasses(argv)
    if source.streaming:
        raise ValueError(
            "--streaming: expected in training only, got it in an evaluation, which reads its split once; omit it."
        )
    if arguments.output:  # fail early
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
    shuffled = ", expressions shuffled" if arguments.shuffle_expressions else ""
    accelerator.print(
        f"{source.dataset} {arguments.split} ({len(samples)} samples{shuffled}): {format_metrics(metrics)}"
    )
    if bad_rows:
        accelerator.print(f"{len(bad_rows)} bad {'row was' if len(bad_rows) == 1 else 'rows were'} skipped:")
        for error in bad_rows:
            accelerator.print(f"  {error.kind}: {error}")
    if arguments.output and accelerator.is_main_process:
        content = {**metrics, "samples": len(samples), "split": arguments.split, "sentences": sentences}
        content["shuffle_expressions"] = arguments.shuffle_expressions
        content["bad_rows"] = [str(error) for error in bad_rows or ()]
        write_json(Path(arguments.output), content)
