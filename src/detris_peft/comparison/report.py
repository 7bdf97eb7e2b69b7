"""Report of a comparison: tables, plots, figures of masks and a page that shows them, from the finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..atomic import atomic_write_file, write_text
from ..errors import one_line
from ..locks import lock_folder
from ..modeling.parameter_counts import ParameterCounts
from ..training.fingerprint import dataset_fingerprint
from .error_analysis import (
    MAX_WORDS,
    MIN_WORD_SHARE,
    THRESHOLDS,
    sentences_by_id,
    shares_to_markdown,
    word_scores,
    words_to_markdown,
)
from .error_figure import choose_errors, plot_errors
from .experiment import Experiment
from .figure2 import choose_samples, plot_figure2
from .panels import collect_masks
from .plots import plot_arm_curves, plot_bars
from .results import RunResult, read_result
from .settings import without_paths
from .statistics import RESAMPLES
from .table import ArmSummary, summarize, to_csv, to_latex, to_markdown

BARS_FILE, CURVES_FILE, FIGURE_FILE, ERRORS_FILE = "bars.png", "curves.png", "figure2.png", "errors.png"
OUTPUT_FILES = ("report.md", "table.md", "table.csv", "table.tex", BARS_FILE, CURVES_FILE, FIGURE_FILE, ERRORS_FILE)

Results = dict[str, dict[int, RunResult]]


@dataclass
class Report:
    """Writes the report of a comparison.

    Args:
        folder: the comparison's folder.
        experiment: the experiment.
        load_rows: returns the dataset of a split, for the words and for the figures of masks.
        samples: ids of the samples in Figure 2; None: those on which the arms disagree most.
        figure_rows: number of samples that are chosen automatically.
    """

    folder: Path
    experiment: Experiment
    load_rows: Callable[[str], datasets.Dataset]
    samples: Sequence[str] | None = None
    figure_rows: int = 6

    def write(self) -> list[str]:
        """Write all files from the results that exist, and return notices about what is missing.

        Raises:
            ValueError: a result is damaged, two results are of different samples, or a chosen sample does not exist.
            OSError: a file could not be written.
        """
        with lock_folder(self.folder):  # another process may finish a run at the same time
            return self._write()

    def _write(self) -> list[str]:
        experiment, results = self.experiment, self.read_results()
        rows = summarize(experiment, results)
        table = to_markdown(rows, experiment.splits)
        write_text(self.folder / "table.md", table)
        write_text(self.folder / "table.csv", to_csv(rows, experiment.splits))
        write_text(self.folder / "table.tex", to_latex(rows, experiment.splits))
        notices = self._missing_runs(results)
        words = None
        if any(results.values()):
            with atomic_write_file(self.folder / BARS_FILE) as file:
                plot_bars(rows, experiment.splits, file)
            with atomic_write_file(self.folder / CURVES_FILE) as file:
                plot_arm_curves(results, [*experiment.arms], file)
            try:
                dataset = self._load_scored_rows(results)
            except (OSError, ValueError) as error:
                notices.append(
                    f"Words are not compared, and {FIGURE_FILE} and {ERRORS_FILE} are not drawn again, without the "
                    f"dataset that was scored ({one_line(error)})."
                )
            else:
                words = self._words(dataset, results)
                notices += self._plot_masks(dataset, results)
        write_text(self.folder / "report.md", self._text(rows, table, words, results, notices))
        return notices

    def read_results(self) -> Results:
        """Return the results of the experiment that exist, by arm and seed."""
        read = {
            arm: {seed: read_result(self.folder, arm, seed) for seed in self.experiment.seeds}
            for arm in self.experiment.arms
        }
        return {arm: {seed: run for seed, run in runs.items() if run is not None} for arm, runs in read.items()}

    def _missing_runs(self, results: Results) -> list[str]:
        missing = []
        for arm, runs in results.items():
            seeds = [str(seed) for seed in self.experiment.seeds if seed not in runs]
            if len(seeds) == len(self.experiment.seeds) > 1:
                missing.append(f"{arm} (all seeds)")
            elif seeds:
                missing.append(f"{arm} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})")
        return [f"Not finished yet: {'; '.join(missing)}."] if missing else []

    def _load_scored_rows(self, results: Results) -> datasets.Dataset:
        """Return the dataset of the first split.

        Raises:
            OSError, ValueError: it cannot be read, or it is not the one that was scored.
        """
        split = self.experiment.splits[0]
        rows = self.load_rows(split)
        expected = dataset_fingerprint(rows, 0)
        for run in (run for runs in results.values() for run in runs.values()):
            data = run.settings.get("data")
            scored = data.get("scored") if isinstance(data, Mapping) else None
            if (
                not isinstance(scored, Mapping) or scored.get(split) != expected
            ):  # other sentences may have the same ids
                raise ValueError(f"{split}: expected the rows that {run.name} was scored on, got others")
        return rows

    def _words(self, dataset: datasets.Dataset, results: Results) -> str | None:
        """Return the table of words of the first split; None without a sample that has a target."""
        split = self.experiment.splits[0]
        rows = word_scores(results, self.experiment.reference, split, sentences_by_id(dataset, split))
        return words_to_markdown(rows) if rows else None

    def _plot_masks(self, dataset: datasets.Dataset, results: Results) -> list[str]:
        """Plot the figures of masks if possible, and return notices about them."""
        split = self.experiment.splits[0]
        arms, seed, missing = collect_masks(self.folder, self.experiment, results, split)
        if not arms:
            return [
                f"{FIGURE_FILE} and {ERRORS_FILE} are not drawn: they need predicted masks, and there are none in "
                "predictions/."
            ]
        ids = self.samples or choose_samples(arms, split, self.figure_rows)
        if ids:
            with atomic_write_file(self.folder / FIGURE_FILE) as file:
                plot_figure2(arms, dataset, split, ids, file)
        notices = [f"{FIGURE_FILE} shows seed {seed}, split {split}, samples {', '.join(ids)}."]
        wrong = self.experiment.reference if self.experiment.reference in arms else next(iter(arms))
        chosen = choose_errors(arms[wrong].samples[split])
        if any(chosen.values()):
            with atomic_write_file(self.folder / ERRORS_FILE) as file:
                plot_errors(arms, dataset, split, chosen, file)
            shown = "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in chosen.items())
            notices.append(f"{ERRORS_FILE} shows seed {seed}, split {split}, errors of {wrong} ({shown}).")
        if missing:
            notices.append(
                f"{FIGURE_FILE} and {ERRORS_FILE} omit {', '.join(missing)}: there are no predicted masks of seed "
                f"{seed}."
            )
        return notices

    def _text(
        self,
        rows: Sequence[ArmSummary],
        table: str,
        words: str | None,
        results: Results,
        notices: Sequence[str],
    ) -> str:
        experiment = self.experiment
        number, planned = sum(map(len, results.values())), len(experiment.arms) * len(experiment.seeds)
        common = json.dumps(without_paths(experiment.common)).replace("`", "'")
        lines = [f"# Comparison {experiment.name}", ""]
        lines.append(
            f"- {len(experiment.arms)} arms with {len(experiment.seeds)} seeds each "
            f"({', '.join(map(str, experiment.seeds))}); {number} of {planned} runs are finished."
        )
        lines.append(f"- Options of all arms: `{common}`")
        lines += [f"- {notice}" for notice in (*_data(results, experiment.splits), *notices)]
        lines += ["", table]
        lines += [
            "Scores are percentages of the best checkpoint (selected on the validation split): mean ± standard "
            "deviation over seeds. "
            f"Δ is the paired difference to {experiment.reference} in percentage points on the same samples, averaged "
            "over the seeds that both arms have, which may be fewer than those of the scores, with its 95 % bootstrap "
            "interval "
            f"({RESAMPLES:,} resamples of the images, so that sentences of one image stay together). An interval "
            "that excludes 0 says that the difference holds for other images of this kind, not that it holds for "
            "other seeds: compare it with the deviation over seeds. Of many such intervals, about one in 20 excludes "
            "0 by chance. mIoU is the mean IoU of the sentences; oIoU divides the sums of intersections and unions, "
            "so that large objects weigh more. `without head` counts the trained parameters "
            "outside the mask head.",
            "",
        ]
        if any(results.values()):
            lines += [f"![Scores of all arms]({BARS_FILE})", "", f"![Training curves]({CURVES_FILE})", ""]
        if (self.folder / FIGURE_FILE).is_file():
            lines += [f"![Masks of all arms]({FIGURE_FILE})", ""]
        if any(results.values()):
            lines += self._errors(words, results)
        lines += _arms(experiment, rows, results)
        return "\n".join(lines)

    def _errors(self, words: str | None, results: Results) -> list[str]:
        """Return the section on errors."""
        experiment, (right, correct) = self.experiment, THRESHOLDS
        lines = ["## Errors", "", shares_to_markdown(results, experiment.splits)]
        lines += [
            f"Share of the sentences with a target, in percent: IoU below {right} (the wrong object, or none), from "
            f"{right} to {correct} (the right object with an inaccurate boundary), and from {correct} (correct). Mean "
            "± standard deviation over seeds.",
            "",
        ]
        if words is not None:
            lines += [words]
            lines += [
                f"mIoU of the sentences of {experiment.splits[0]} that contain a word, in percent, and their share: "
                f"of the words in at least {100 * MIN_WORD_SHARE:.0f} % of the sentences with a target, the "
                f"{MAX_WORDS} (or fewer) with the lowest mIoU of the reference arm. A word need not be the cause of a "
                "low mIoU: it may occur with small objects more often than others do.",
                "",
            ]
        if (self.folder / ERRORS_FILE).is_file():
            lines += [f"![Errors: the predicted mask (yellow) and the target (cyan)]({ERRORS_FILE})", ""]
        return lines


def _data(results: Results, splits: Sequence[str]) -> list[str]:
    """Return one line on the data of each split."""
    lines = []
    for split in splits:
        runs = (run for by_seed in results.values() for run in by_seed.values())
        samples = next((run.samples[split] for run in runs if split in run.samples), None)
        if samples is not None:
            lines.append(f"{split}: {len(samples.ids):,} sentences of {len(set(samples.images)):,} images.")
    return lines


def _arms(experiment: Experiment, rows: Sequence[ArmSummary], results: Mapping[str, Mapping[int, RunResult]]) -> list:
    """Return a table of the arms: their own options, parameters by part, training time, precision and device."""
    titles = ("arm", "own options", "trained parameters", "minutes per run", "precision", "device")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        own = without_paths(experiment.arms[row.arm])
        options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in own.items()) or "none"
        parts = ", ".join(_parts(row.parameters)) if row.parameters else ""
        runs = results.get(row.arm, {}).values()
        minutes = ", ".join(f"{'> ' if run.interruptions else ''}{run.seconds / 60:.1f}" for run in runs)
        precisions = ", ".join(sorted({run.precision for run in runs}))
        devices = ", ".join(sorted({run.device for run in runs}))
        cells = (row.arm, f"`{options}`", parts or "-", minutes or "-", precisions or "-", devices or "-")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return [*lines, ""]


def _parts(counts: ParameterCounts) -> list[str]:
    """Return the numbers of trained parameters of the parts that have any."""
    trained = ("vision_adapter", "text_adapter", "bridger", "backbones", "head")
    return [f"{part} {getattr(counts, part):,}" for part in trained if getattr(counts, part)]
