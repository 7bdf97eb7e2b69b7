"""Results of finished runs: one JSON file per arm and seed. A run with this file counts as finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ..atomic import write_text
from ..field_types import describe_type, has_type
from ..modeling.parameter_counts import ParameterCounts
from ..precision import with_precision
from ..safe_loading import read_json

RESULTS_FOLDER = "results"
COMPARED_METRICS = ("mIoU", "oIoU")
_FIELDS_OF_SAMPLES = ("ids", "images", "intersections", "unions", "predicted")


@dataclass(frozen=True)
class SampleCounts:
    """Pixel counts of the N samples of a split.

    Attributes:
        ids: (N,) names of the samples, see `sample_ids`.
        images: (N,) ids of their images.
        intersections, unions, predicted: (N,) pixel counts, see `detris_peft.metrics.pixel_counts`.
    """

    ids: list[str]
    images: list[int]
    intersections: list[int]
    unions: list[int]
    predicted: list[int]

    @cached_property
    def has_target(self) -> np.ndarray:
        """(N,) whether the reference mask is not empty; only such samples have an IoU."""
        intersections, unions, predicted = map(np.array, (self.intersections, self.unions, self.predicted))
        return unions + intersections > predicted

    @cached_property
    def iou(self) -> np.ndarray:
        """(N,) IoU of each sample, as in mIoU."""
        return np.array(self.intersections) / (np.array(self.unions) + 1e-6)


@dataclass(frozen=True)
class RunResult:
    """The result of one finished run.

    Attributes:
        arm, seed: the run.
        settings: what the result depends on, see `settings.py`; settings_sha256 is its hash.
        options: every resolved option, with absolute paths shortened.
        versions: package versions.
        device: name of the device.
        num_processes: number of processes.
        seconds: wall time of the training and the final evaluation.
        interruptions: how often the run was resumed; `seconds` is then the time of the last part.
        parameters: numbers of parameters by part of the model.
        history: one record per evaluation during training.
        metrics: final metrics of the best checkpoint by split.
        samples: pixel counts by split.
    """

    arm: str
    seed: int
    settings: dict
    settings_sha256: str
    options: dict
    versions: dict
    device: str
    num_processes: int
    seconds: float
    interruptions: int
    parameters: ParameterCounts
    history: list[dict]
    metrics: dict
    samples: dict[str, SampleCounts]

    @property
    def name(self) -> str:
        return run_name(self.arm, self.seed)

    @property
    def precision(self) -> str:
        """The precision of the training."""
        return str(with_precision(self.options).get("precision", "fp32"))

    def write(self, folder: Path) -> None:
        """Write the result atomically to a comparison's folder."""
        # One line per field: readable, and small although there are many samples.
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(self).items())
        file = result_file(folder, self.arm, self.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def run_name(arm: str, seed: int) -> str:
    """Return the name of a run, which its folder and its files have."""
    return f"{arm}-seed{seed}"


def result_file(folder: Path, arm: str, seed: int) -> Path:
    """Return the file of a run's result in a comparison's folder."""
    return folder / RESULTS_FOLDER / f"{run_name(arm, seed)}.json"


def read_result(folder: Path, arm: str, seed: int) -> RunResult | None:
    """Read the result of a run; None if the run is not finished.

    Raises:
        ValueError: the file is damaged, or is not a result of this run.
    """
    file = result_file(folder, arm, seed)
    try:
        content = read_json(file)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise _damaged(file, f"an object, got {type(content).__name__}")
    types = get_type_hints(RunResult) | {"samples": dict, "parameters": dict}
    for field in fields(RunResult):
        if not has_type(content.get(field.name), types[field.name]):
            got = type(content.get(field.name)).__name__ if field.name in content else "none"
            raise _damaged(file, f"{field.name} as {describe_type(types[field.name])}, got {got}")
    if (content["arm"], content["seed"]) != (arm, seed):
        raise _damaged(file, f"the result of {run_name(arm, seed)}, got {run_name(content['arm'], content['seed'])}")
    samples = {split: _read_samples(file, split, values) for split, values in content["samples"].items()}
    for split in samples:
        metrics = content["metrics"].get(split)
        if not isinstance(metrics, dict) or not all(_is_share(metrics.get(name)) for name in COMPARED_METRICS):
            raise _damaged(file, f"the metrics {', '.join(COMPARED_METRICS)} of {split} from 0 to 1, got others")
    parts = [part.name for part in fields(ParameterCounts)]
    counts = {part: content["parameters"].get(part, 0) for part in parts}
    if not all(has_type(count, int) and count >= 0 for count in counts.values()):
        raise _damaged(file, f"numbers of parameters of {', '.join(parts)}, got other values")
    for name in ("epoch", "step", "train_loss", "mIoU"):
        if not content["history"] or not all(has_type(record.get(name), float) for record in content["history"]):
            raise _damaged(file, f"a history of evaluations with {name}, got none")
    known = {field.name: content[field.name] for field in fields(RunResult)}
    return RunResult(**{**known, "parameters": ParameterCounts(**counts), "samples": samples})


def sample_ids(rows: Any, row_index: Iterable[int], sentence_index: Iterable[int]) -> list[str]:
    """Return a name for each sample: the reference's id, then `.1`, `.2`, … for its further sentences.

    Args:
        rows: a dataset with the columns of `detris_peft.data.FEATURES`.
        row_index, sentence_index: (N,) row and sentence of each sample, see `EvaluationSamples`.
    """
    numbers, names = rows["ref_id"], rows["dataset"]
    several = len(set(names)) > 1  # ids are unique within one dataset
    ids = [
        (f"{names[row]}/" if several else "") + str(numbers[row]) + (f".{sentence}" if sentence else "")
        for row, sentence in zip(map(int, row_index), map(int, sentence_index), strict=True)
    ]
    return ids if len(set(ids)) == len(ids) else [f"{name}@{index}" for index, name in enumerate(ids)]


def _read_samples(file: Path, split: str, values: Any) -> SampleCounts:
    where = f"samples.{split}"
    if not isinstance(values, Mapping) or not all(isinstance(values.get(name), list) for name in _FIELDS_OF_SAMPLES):
        raise _damaged(file, f"{where} with the lists {', '.join(_FIELDS_OF_SAMPLES)}, got others")
    counts = SampleCounts(**{name: values[name] for name in _FIELDS_OF_SAMPLES})
    lengths = {len(values[name]) for name in _FIELDS_OF_SAMPLES}
    if len(lengths) > 1 or not counts.ids:
        raise _damaged(file, f"{where} with lists of one length above 0, got {sorted(lengths)}")
    if len(set(map(str, counts.ids))) < len(counts.ids) or not all(isinstance(name, str) for name in counts.ids):
        raise _damaged(file, f"{where}.ids with different texts, got others")
    numbers = (counts.images, counts.intersections, counts.unions, counts.predicted)
    if not all(type(number) is int and abs(number) < 2**62 for column in numbers for number in column):
        raise _damaged(file, f"{where} with integers, got other values")
    rows = zip(*numbers[1:], strict=True)
    if not all(0 <= intersection <= predicted <= union for intersection, union, predicted in rows):
        raise _damaged(file, f"{where} with 0 <= intersection <= predicted <= union, got other counts")
    return counts


def _is_share(value: Any) -> bool:
    return has_type(value, float) and 0 <= value <= 1


def _damaged(file: Path, expected: str) -> ValueError:
    return ValueError(f"{file}: expected {expected}; copy the file again, or remove it to train this run again.")
