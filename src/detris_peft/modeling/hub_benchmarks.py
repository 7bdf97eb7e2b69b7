"""Results on benchmarks of the Hub, which shows them on the model's page and on the benchmark's leaderboard.

A benchmark is a dataset repository with an `eval.yaml` that names its tasks. No benchmark for referring image
segmentation was known when this was written, so the user names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from typing_extensions import Self

EVAL_RESULTS_FILE = ".eval_results/detris_peft.yaml"
BENCHMARK_FORMAT = "user/dataset:task_id:metric"

_BENCHMARK = re.compile(r"(?P<dataset_id>[\w.-]+/[\w.-]+):(?P<task_id>[^\s:]+):(?P<metric>[^\s:]+)")


@dataclass(frozen=True)
class HubBenchmark:
    """A task of a benchmark dataset on the Hub, and the metric that its leaderboard ranks.

    Attributes:
        dataset_id: Hub id of the dataset, which has an `eval.yaml`.
        task_id: id of the task in that file.
        metric: name of the metric, such as "mIoU"; its value is published in percent.
    """

    dataset_id: str
    task_id: str
    metric: str = "mIoU"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the benchmark that `user/dataset:task_id:metric` names.

        Raises:
            ValueError: the text has another format.
        """
        match = _BENCHMARK.fullmatch(text)
        if match is None:
            raise ValueError(f"benchmark: expected {BENCHMARK_FORMAT}, got {text!r:.80}; change it.")
        return cls(**match.groupdict())


def eval_results_yaml(benchmarks: Iterable[HubBenchmark], metrics: Mapping[str, float]) -> str:
    """Return the content of `.eval_results/*.yaml`: one entry per benchmark.

    Args:
        benchmarks: the benchmarks.
        metrics: scores in [0, 1], keyed by name.

    Raises:
        ValueError: a benchmark's metric was not computed.
    """
    entries = []
    for benchmark in benchmarks:
        if benchmark.metric not in metrics:
            raise ValueError(
                f"{benchmark.dataset_id}:{benchmark.task_id}: expected the metric {benchmark.metric}, got "
                f"{', '.join(metrics) or 'no metrics'}; choose one of these."
            )
        value = round(100 * metrics[benchmark.metric], 4)
        notes = f"{benchmark.metric} in %"
        entries.append(EvalResultEntry(benchmark.dataset_id, benchmark.task_id, value, notes=notes))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
