"""Prediction for many rows: JSON Lines, and images if they are requested."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

from ...precision import precision_dtype
from ...prediction import DetrisPredictor, usable_device
from ...prediction.job_files import JobFiles
from ...prediction.jobs import JobResult, job_fingerprint, run_job
from ...prediction.pairs import STDIN, Pair, cross_pairs, list_images, read_pairs
from ...prediction.ranks import Ranks
from ...prediction.row_predictor import RowPredictor
from ..checkpoint_options import CheckpointArguments, load_checkpoint, truncation_notice
from .options import PredictionArguments

_LISTED = 20  # failed rows


def predict_many(checkpoint: CheckpointArguments, arguments: PredictionArguments) -> None:
    """Predict all rows of the arguments, and list those that cannot be predicted.

    Raises:
        OSError, ValueError: the rows or the checkpoint cannot be read, or a file cannot be written.
        ValueError: rows could not be predicted; raised after all others were written.
    """
    ranks = Ranks(arguments.device)
    device = usable_device(ranks.device, "--device")
    precision, described = arguments.precision_on(device)
    ranks.on_main(lambda: arguments.check_device(device))
    files = JobFiles(str(arguments.output))
    pairs, notices = ranks.on_main(lambda: read_rows(arguments))
    ranks.on_main(lambda: check_outputs(files, checkpoint, arguments, pairs))
    loaded: list[DetrisPredictor] = []

    def load() -> None:
        model, processor = load_checkpoint(checkpoint)
        dtype = precision_dtype(precision)
        loaded.append(DetrisPredictor(model, processor, device, dtype, arguments.batch_size))

    ranks.on_all(load)
    predictor = loaded[0]
    if ranks.is_main:
        tokenizer, limit = predictor.processor.tokenizer, predictor.processor.max_text_length  # type: ignore[attr-defined]
        texts = dict.fromkeys(pair.text for pair in pairs if pair.error is None)
        notice = truncation_notice(tokenizer, texts, limit) if texts else None
        print("\n".join([*notices, *([notice] if notice else []), described]))
    fingerprint = job_fingerprint(
        predictor, checkpoint.checkpoint, pairs, arguments.threshold, arguments.save, arguments.quantize
    )
    ranks.on_all(lambda: arguments.optimize(predictor))
    row_predictor = RowPredictor(predictor, arguments.threshold, arguments.save, files.output, len(pairs))
    result = run_job(
        lambda batches: row_predictor.stream(batches, arguments.num_workers),
        pairs,
        files,
        fingerprint,
        batch_size=arguments.batch_size,
        resume=arguments.resume,
        ranks=ranks,
    )
    ranks.close()
    if ranks.is_main:
        report(files, result, image_root(arguments))


def check_outputs(
    files: JobFiles, checkpoint: CheckpointArguments, arguments: PredictionArguments, pairs: Sequence[Pair]
) -> None:
    """Raise a ValueError if the job must not write its files."""
    inputs = [checkpoint.checkpoint, *(pair.source for pair in pairs if pair.source)]
    inputs += [arguments.pairs] if arguments.pairs not in (None, STDIN) else []
    files.check(inputs, arguments.overwrite, arguments.resume)


def read_rows(arguments: PredictionArguments) -> tuple[list[Pair], list[str]]:
    """Return the rows, and one line per folder or glob."""
    stdin = BytesIO() if sys.stdin is None else sys.stdin.buffer  # closed
    if arguments.pairs is not None:
        return read_pairs(arguments.pairs, stdin, arguments.image_root), []
    images, notices = list_images(arguments.image, stdin)
    return cross_pairs(images, arguments.text), notices


def image_root(arguments: PredictionArguments) -> str:
    """Return the folder that relative paths of the images start from."""
    if arguments.image_root is not None:
        return arguments.image_root
    return "." if arguments.pairs in (None, STDIN) else str(Path(arguments.pairs).parent)


def report(files: JobFiles, result: JobResult, root: str) -> None:
    """Print what a job wrote, and the rows that failed.

    Raises:
        ValueError: rows failed; the message names the file that lists them.
    """
    total = result.predicted + result.failed
    new = total - result.earlier
    earlier = f"{result.earlier:,} rows were done before; " if result.earlier else ""
    speed = f" ({new / result.seconds:.1f} images/s)" if new and result.seconds else ""
    predictions = f"{result.predicted:,} prediction{'' if result.predicted == 1 else 's'}"
    print(f"{earlier}wrote {predictions} to {files.predictions}{speed}")
    if not result.failed:
        return
    print(f"{result.failed:,} of {total:,} rows failed:")
    for record in islice(files.failures(), _LISTED):
        print(f"  row {record['row']}: {record['error']}")
    if result.failed > _LISTED:
        print(f"  ... and {result.failed - _LISTED:,} more")
    raise ValueError(
        f"{result.failed:,} of {total:,} rows could not be predicted, the others were written; correct those rows, "
        f"and predict them with --pairs {shlex.quote(str(files.errors))} --image_root {shlex.quote(root)} and another "
        "--output."
    )
