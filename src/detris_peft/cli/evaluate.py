"""Score a saved checkpoint on any split of a data set in REFER's layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from transformers import HfArgumentParser

from .. import DetrisForReferringSegmentation, DetrisProcessor
from ..data import EvaluationSamples, load_refer
from ..evaluation import evaluate
from ..metrics import format_metrics

_TITLE = "Score a saved checkpoint on any split of a data set in REFER's layout."


@dataclass
class EvaluationArguments:
    checkpoint: str = field(metadata={"help": "folder or Hub repository of a trained model"})
    data_root: str = field(default="data", metadata={"help": "folder that holds the data set and images/"})
    dataset: str = field(default="refcoco", metadata={"help": "refcoco, refcoco+, refcocog, refclef or refshapes"})
    split_by: str = field(default="unc", metadata={"help": "who made the splits: unc, umd or google"})
    split: str = field(default="val", metadata={"help": "the split to score"})
    image_folder: str = field(default="images/train2014", metadata={"help": "where the pictures are, below data_root"})
    sentences: str | None = field(
        default=None, metadata={"help": "first or all; by default first for train and val, all for the others"}
    )
    shuffle_expressions: bool = field(
        default=False, metadata={"help": "give each picture another one's sentence: how much does language matter?"}
    )
    batch_size: int = field(default=32, metadata={"help": "samples of a step and process"})
    num_workers: int = field(default=2, metadata={"help": "processes that read pictures"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    seed: int = field(default=0, metadata={"help": "of the shuffle"})
    output: str | None = field(default=None, metadata={"help": "JSON file for the metrics"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    arguments = HfArgumentParser(
        cast(Any, EvaluationArguments), prog=prog, description=_TITLE
    ).parse_args_into_dataclasses(argv)[0]
    if arguments.output:  # before the work, not after it
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    rows = load_refer(
        arguments.data_root,
        arguments.dataset,
        arguments.split_by,
        arguments.split,
        image_folder=arguments.image_folder,
    )
    sentences = arguments.sentences or ("first" if arguments.split in ("train", "val") else "all")
    samples = EvaluationSamples(rows, sentences, arguments.shuffle_expressions, arguments.seed)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    metrics = evaluate(
        DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint),
        DetrisProcessor.from_pretrained(arguments.checkpoint),
        samples,
        accelerator=accelerator,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    metrics.pop("loss")
    shuffled = ", sentences shuffled" if arguments.shuffle_expressions else ""
    accelerator.print(
        f"{arguments.dataset} {arguments.split} ({len(samples)} samples{shuffled}): {format_metrics(metrics)}"
    )
    if arguments.output and accelerator.is_main_process:
        content = {**metrics, "samples": len(samples), "split": arguments.split, "sentences": sentences}
        content["shuffle_expressions"] = arguments.shuffle_expressions
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
