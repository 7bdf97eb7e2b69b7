"""Score a saved checkpoint on any split of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..atomic import write_json
from ..data.errors import BadRows
from ..data.sources import DataSource
from ..outputs import check_output_file
from ..precision import describe_precision, precision_dtype, resolve_precision
from ..training.launcher import describe_ignored_launcher_settings, launched_on_cpu, launcher_settings
from .checkpoint_options import CheckpointArguments, load_checkpoint, truncation_notice
from .parser import CommandParser


@dataclass
class EvaluationArguments:
    """Options of `detris evaluate`.

    Raises:
        ValueError: a value is outside its range; the message names the option.
    """

    split: str = field(default="val", metadata={"help": "split to score"})
    sentences: Literal["first", "all"] | None = field(
        default=None,
        metadata={"help": "expressions per reference: first or all; default: first for train and val, else all"},
    )
    shuffle_expressions: bool = field(
        default=False, metadata={"help": "ablation: pair each image with another image's expression"}
    )
    no_target_pairs: bool = field(
        default=False,
        metadata={
            "help": "also score each image with an expression that refers to nothing in it, as far as category ids "
            "tell (N-acc, T-acc); the other metrics do not change"
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "skip and list invalid rows; default: stop at the first one"},
    )
    batch_size: int = field(default=32, metadata={"help": "batch size per process"})
    num_workers: int = field(default=2, metadata={"help": "DataLoader workers per process"})
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = field(
        default=None,
        metadata={
            "help": "precision of the weights; auto: bf16 on a CPU with bf16 instructions, else fp32; default: as "
            "accelerate launch, or fp32"
        },
    )
    seed: int = field(default=0, metadata={"help": "random seed of --shuffle_expressions and --no_target_pairs"})
    output: str | None = field(default=None, metadata={"help": "JSON file for the metrics"})
    overwrite: bool = field(default=False, metadata={"help": "replace an existing --output"})

    def __post_init__(self) -> None:
        for name, low, high in (("batch_size", 1, 100_000), ("num_workers", 0, 1000), ("seed", 0, 2**32 - 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"--{name}: expected {low} to {high}, got {getattr(self, name)}; change it.")
        if self.precision is None:
            self.precision = launcher_settings().get("precision", "fp32")


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    return CommandParser((CheckpointArguments, EvaluationArguments, DataSource), prog=prog, description=__doc__)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris evaluate` with these arguments; default: those of the command line."""
    evaluate_checkpoint(*create_parser(prog).parse_args_into_dataclasses(argv))


def evaluate_checkpoint(checkpoint: CheckpointArguments, arguments: EvaluationArguments, source: DataSource) -> None:
    """Score a checkpoint on a split; print the metrics, and write them on request.

    Raises:
        OSError, ValueError: an option is invalid, or the checkpoint or the data cannot be used.
    """
    if source.streaming:
        raise ValueError(
            "--streaming: expected in training only, got it in an evaluation, which reads its split once; omit it."
        )
    import torch
    from accelerate import Accelerator

    from ..data import EvaluationSamples
    from ..evaluation import evaluate
    from ..metrics import format_metrics
    from ..modeling.casting import cast_model

    device = "cpu" if launched_on_cpu() else None
    precision = resolve_precision(str(arguments.precision), device, training=False, option="--precision")
    if arguments.output:
        inputs = (source.dataset, *Path(checkpoint.checkpoint, checkpoint.subfolder).glob("*.json"))
        check_output_file(arguments.output, arguments.overwrite, inputs)
    bad_rows = BadRows() if arguments.skip_bad_rows else None
    rows: Any = source.load_valid(arguments.split, bad_rows)
    sentences = arguments.sentences or ("first" if arguments.split in ("train", "val") else "all")
    samples = EvaluationSamples(
        rows,
        sentences,
        arguments.shuffle_expressions,
        arguments.seed,
        skip_bad_rows=arguments.skip_bad_rows,
        no_target_pairs=arguments.no_target_pairs,
    )
    number, num_pairs = samples.first_pair, len(samples) - samples.first_pair
    # The weights have the precision, as in `detris predict`, so that both give the same masks.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    described = describe_precision(precision, accelerator.device, arguments.precision == "auto")
    for line in (*describe_ignored_launcher_settings(precision=precision), described):
        accelerator.print(line)
    model, processor = load_checkpoint(checkpoint)
    cast_model(model, precision_dtype(precision))
    metrics = evaluate(
        model,
        processor,
        samples,
        accelerator=accelerator,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        bad_rows=bad_rows,
    )
    metrics.pop("loss")
    notes = ", expressions shuffled" if arguments.shuffle_expressions else ""
    notes += f", {num_pairs} no-target pairs" if arguments.no_target_pairs else ""
    accelerator.print(f"{source.dataset} {arguments.split} ({number} samples{notes}): {format_metrics(metrics)}")
    if bad_rows:
        accelerator.print(f"{len(bad_rows)} invalid {'row was' if len(bad_rows) == 1 else 'rows were'} skipped:")
        for error in bad_rows:
            accelerator.print(f"  {error.kind}: {error}")
    expressions = [text for texts in rows["sentences"][:] for text in (texts[:1] if sentences == "first" else texts)]
    notice = truncation_notice(processor.tokenizer, expressions, processor.max_text_length)  # type: ignore[attr-defined]
    if notice:
        accelerator.print(notice)
    if arguments.output and accelerator.is_main_process:
        content = {**metrics, "samples": number, "split": arguments.split, "sentences": sentences}
        content["shuffle_expressions"] = arguments.shuffle_expressions
        content["no_target_pairs"] = num_pairs
        content["precision"] = precision
        content["bad_rows"] = [str(error) for error in bad_rows or ()]
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(arguments.output), content)
        print(f"wrote {arguments.output}")
