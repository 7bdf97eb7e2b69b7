"""Tables of a comparison: one row per arm, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..modeling.parameter_counts import ParameterCounts
from .experiment import Experiment
from .results import COMPARED_METRICS, RunResult
from .statistics import Difference, Score, paired_differences, score

_NONE = "-"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}


@dataclass(frozen=True)
class ArmSummary:
    """One row of the table.

    Attributes:
        arm: name of the arm.
        is_reference: whether the others are compared with it.
        seeds: seeds of its finished runs.
        parameters: numbers of parameters by part; None without a finished run.
        scores: by split and metric.
        differences: to the reference arm, by split and metric.
    """

    arm: str
    is_reference: bool
    seeds: list[int]
    parameters: ParameterCounts | None
    scores: Mapping[str, Mapping[str, Score]]
    differences: Mapping[str, Mapping[str, Difference]]


def summarize(experiment: Experiment, results: Mapping[str, Mapping[int, RunResult]]) -> list[ArmSummary]:
    """Return one row per arm of an experiment.

    Args:
        experiment: the experiment.
        results: finished runs by arm and seed.
    """
    differences = {split: paired_differences(results, experiment.reference, split) for split in experiment.splits}
    rows = []
    for arm in experiment.arms:
        runs = results.get(arm, {})
        scores = {}
        for split in experiment.splits:
            metrics = [result.metrics[split] for result in runs.values() if split in result.metrics]
            if metrics:
                scores[split] = {name: score([values[name] for values in metrics]) for name in COMPARED_METRICS}
        rows.append(
            ArmSummary(
                arm=arm,
                is_reference=arm == experiment.reference,
                seeds=sorted(runs),
                parameters=next(iter(runs.values())).parameters if runs else None,
                scores=scores,
                differences={split: by_arm[arm] for split, by_arm in differences.items() if arm in by_arm},
            )
        )
    return rows


def to_csv(rows: Sequence[ArmSummary], splits: Sequence[str]) -> str:
    """Return the table as CSV: complete numbers in [0, 1], one column each; empty where there is none."""
    header = ["arm", "reference", "seeds", "trained_parameters", "backbone_update_parameters"]
    for split in splits:
        for metric in COMPARED_METRICS:
            header += [f"{split}_{metric}_{name}" for name in ("mean", "sd", "difference", "low", "high", "pairs")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list[object] = [row.arm, int(row.is_reference), len(row.seeds)]
        line += [row.parameters.trained, row.parameters.backbone_update] if row.parameters else ["", ""]
        for split in splits:
            for metric in COMPARED_METRICS:
                value = row.scores.get(split, {}).get(metric)
                difference = row.differences.get(split, {}).get(metric)
                line += ["" if number is None else number for number in (value[:2] if value else ("", ""))]
                line += ["" if number is None else number for number in difference or 4 * [None]]
        writer.writerow(line)
    return stream.getvalue()


def to_markdown(rows: Sequence[ArmSummary], splits: Sequence[str]) -> str:
    """Return the table in Markdown: percentages, mean ± deviation over seeds, differences with intervals."""
    return markdown_table(_cells(rows, splits))


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; its first line is the header, and all columns but the first are right-aligned."""
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in cells]
    lines = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([lines[0], "|---" + "|---:" * (len(cells[0]) - 1) + "|", *lines[1:]]) + "\n"


def to_latex(rows: Sequence[ArmSummary], splits: Sequence[str]) -> str:
    """Return the table in LaTeX, for the package booktabs."""
    cells = [[escape_latex(cell) for cell in line] for line in _cells(rows, splits)]
    # A hyphen before a number is a minus sign.
    cells = [[line[0], *(re.sub(r"-(?=\d)", "$-$", cell) for cell in line[1:])] for line in cells]
    lines = [" & ".join(line) + r" \\" for line in cells]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*body, *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    """Return a text whose characters have no special meaning in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def format_parameters(count: int) -> str:
    """Return a number of parameters as in the paper's tables: millions from 100,000 on."""
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def format_score(value: Score | None) -> str:
    """Return a metric in percent, with its deviation over seeds if there are several."""
    if value is None:
        return _NONE
    return f"{100 * value.mean:.1f}" + ("" if value.deviation is None else f" ± {100 * value.deviation:.1f}")


def format_difference(value: Difference | None) -> str:
    """Return a difference in percentage points with its interval."""
    if value is None:
        return _NONE
    interval = "" if value.low is None or value.high is None else f" [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    return f"{100 * value.value:+.1f}{interval}"


def _cells(rows: Sequence[ArmSummary], splits: Sequence[str]) -> list[list[str]]:
    """Return the header and the rows of a table as texts."""
    header = ["arm", "trained", "without head", "seeds"]
    for split in splits:
        header += [f"{split} {name}" for name in COMPARED_METRICS] + [f"Δ {split} {name}" for name in COMPARED_METRICS]
    lines = [header]
    for row in rows:
        line = [row.arm + (" (reference)" if row.is_reference else "")]
        counts = (row.parameters.trained, row.parameters.backbone_update) if row.parameters else None
        line += [*map(format_parameters, counts)] if counts else [_NONE, _NONE]
        line.append(str(len(row.seeds)))
        for split in splits:
            line += [format_score(row.scores.get(split, {}).get(name)) for name in COMPARED_METRICS]
            line += [format_difference(row.differences.get(split, {}).get(name)) for name in COMPARED_METRICS]
        lines.append(line)
    return lines
