r"""Segment what expressions refer to in images with Ray Data, on one machine or a Ray cluster.

    pip install "detris-peft[ray]"
    python examples/predict_ray.py --checkpoint runs/b/best --pairs pairs.csv --output predictions --num_actors 2

The options are those of `detris predict` for several rows, and the files that it writes are the same. Each actor
holds a model, on a GPU of its own if there is one. On a cluster, checkpoint, images and output folder must have the
same path on all machines. Batches are cut before Ray distributes them, so the results are, byte for byte, those of a
single process with the same batch size and number of threads (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by ray.init

import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from detris_peft import DetrisPredictor
from detris_peft.cli import run
from detris_peft.cli.checkpoint_options import CheckpointArguments, load_checkpoint
from detris_peft.cli.parser import CommandParser
from detris_peft.cli.predict.many import check_outputs, image_root, read_rows, report
from detris_peft.cli.predict.options import PredictionArguments, parse_arguments
from detris_peft.precision import precision_dtype
from detris_peft.prediction.job_files import JobFiles
from detris_peft.prediction.jobs import job_fingerprint, run_job
from detris_peft.prediction.pairs import Pair
from detris_peft.prediction.row_predictor import RowPredictor, RowResult, Rows

BATCHES_PER_BLOCK = 16  # an actor gets a block at a time, and loads the images of its next batch meanwhile


@dataclass
class RayArguments:
    """Options of Ray."""

    num_actors: int = field(default=1, metadata={"help": "processes that hold a model"})
    cpus_per_actor: float = field(default=1.0, metadata={"help": "CPU cores that Ray reserves for an actor"})
    uses_gpus: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.num_actors < 1:
            raise ValueError(f"--num_actors: expected at least 1, got {self.num_actors}; change it.")


class PredictBatches:
    """Callable for `map_batches`. Each row that Ray sees is a batch of rows of the job, as JSON."""

    def __init__(self, checkpoint: CheckpointArguments, arguments: PredictionArguments, total: int, cwd: str) -> None:
        os.chdir(cwd)  # relative paths start from the driver's working directory
        device = arguments.device or ("cuda" if ray.get_gpu_ids() else "cpu")
        predictor = DetrisPredictor(
            *load_checkpoint(checkpoint), device, precision_dtype(arguments.precision), arguments.batch_size
        )
        arguments.optimize(predictor)
        folder = JobFiles(str(arguments.output)).output
        self.row_predictor = RowPredictor(predictor, arguments.threshold, arguments.save, folder, total)
        self.num_workers = arguments.num_workers

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        batches = ([(row, Pair(*values)) for row, *values in json.loads(batch)] for batch in block["batch"])
        results = self.row_predictor.stream(batches, self.num_workers)
        return {"results": [json.dumps([astuple(result) for result in batch]) for batch in results]}


def predict_with_ray(batches: Iterable[Rows], options: RayArguments, *arguments: Any) -> Iterator[list[RowResult]]:
    """Yield the results of each batch, in order; `arguments` are those of `PredictBatches`."""
    items = [{"batch": json.dumps([(row, *astuple(pair)) for row, pair in rows])} for rows in batches]
    if not items:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    blocks = max(-(-len(items) // BATCHES_PER_BLOCK), min(len(items), 2 * options.num_actors))
    dataset = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        PredictBatches,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=options.num_actors),
        num_cpus=options.cpus_per_actor,
        num_gpus=1 if options.uses_gpus else 0,
    )
    for row in dataset.iter_rows():
        yield [RowResult(*values) for values in json.loads(row["results"])]


def main(argv: Sequence[str] | None = None) -> None:
    """Predict the rows of the options."""
    parser = CommandParser((CheckpointArguments, PredictionArguments, RayArguments), description=__doc__)
    checkpoint, arguments, options = parse_arguments(parser, argv)
    if arguments.is_single:
        parser.error("--output: expected a folder or a .jsonl file, got an image; use `detris predict` for one image")
    options.uses_gpus = arguments.device != "cpu" and torch.cuda.is_available()
    files = JobFiles(arguments.output)
    pairs, notices = read_rows(arguments)
    check_outputs(files, checkpoint, arguments, pairs)
    # Chosen once, so that all actors have the same.
    arguments.precision, precision = arguments.precision_on("cuda" if options.uses_gpus else "cpu")
    print(*notices, precision, sep="\n")
    # Only for the fingerprint; the actors load it again.
    predictor = DetrisPredictor(*load_checkpoint(checkpoint), "cpu", precision_dtype(arguments.precision))
    fingerprint = job_fingerprint(
        predictor, checkpoint.checkpoint, pairs, arguments.threshold, arguments.save, arguments.quantize
    )
    del predictor
    result = run_job(
        lambda batches: predict_with_ray(batches, options, checkpoint, arguments, len(pairs), os.getcwd()),
        pairs,
        files,
        fingerprint,
        batch_size=arguments.batch_size,
        resume=arguments.resume,
    )
    report(files, result, image_root(arguments))


if __name__ == "__main__":
    run(main)
