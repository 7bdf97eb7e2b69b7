"""Score a saved checkpoint on any split of a data set in REFER's layout.

    python examples/evaluate.py --checkpoint runs/detris/best --data_root DATA --dataset refcoco --split testA

Validation takes each reference's first sentence and a test split takes all of them, as the paper does.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import json
import pickle
from dataclasses import dataclass, field

from accelerate import Accelerator
from transformers import HfArgumentParser

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.data import EvaluationSamples, load_refer
from detris_peft.evaluation import evaluate
from detris_peft.metrics import format_metrics


@dataclass
class EvaluationArguments:
    checkpoint: str = field(metadata={"help": "folder or Hub repository of a trained model"})
    data_root: str = field(default="data", metadata={"help": "folder that holds the data set and images/"})
    dataset: str = field(default="refcoco", metadata={"help": "refcoco, refcoco+, refcocog, refclef or refshapes"})
    split_by: str = field(default="unc", metadata={"help": "who made the splits: unc, umd or google"})
    split: str = field(default="val", metadata={"help": "the split to score"})
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


def main() -> None:
    arguments = HfArgumentParser(
        EvaluationArguments, description=__doc__.splitlines()[0]
    ).parse_args_into_dataclasses()[0]
    rows = load_refer(arguments.data_root, arguments.dataset, arguments.split_by, arguments.split)
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


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {error}")
