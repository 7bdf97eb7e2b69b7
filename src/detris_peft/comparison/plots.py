"""Plots of a comparison: scores of all arms as bars, and their training curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..visualization import pyplot, save_figure
from .results import COMPARED_METRICS, RunResult
from .table import ArmSummary, format_score

# Okabe and Ito's palette, which is readable for all common kinds of color vision, without its yellow.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")
_BAR_COLORS = dict(zip(COMPARED_METRICS, ("#0072B2", "#E69F00"), strict=True))


def plot_bars(rows: Sequence[ArmSummary], splits: Sequence[str], file: str | os.PathLike) -> None:
    """Plot mIoU and oIoU of every arm as horizontal bars, one panel per split, with deviations over seeds.

    A vertical line marks the mIoU of the reference arm.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        1,
        len(splits),
        figsize=(2.2 + 4.4 * len(splits), 1.5 + 0.55 * len(rows)),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    positions = np.arange(len(rows))
    reference_line: Any = {"color": "#666666", "linewidth": 0.8, "linestyle": "--", "zorder": 0}
    for axis, split in zip(axes[0], splits, strict=True):
        ends = [0.0]
        for metric, offset in zip(COMPARED_METRICS, (-0.19, 0.19), strict=True):
            for position, row in zip(positions, rows, strict=True):
                value = row.scores.get(split, {}).get(metric)
                if value is None:
                    continue
                deviation = 100 * (value.deviation or 0.0)
                axis.barh(position + offset, 100 * value.mean, 0.36, color=_BAR_COLORS[metric])
                if value.deviation is not None:
                    axis.errorbar(
                        100 * value.mean, position + offset, xerr=deviation, color="#333333", capsize=2, linewidth=1
                    )
                ends.append(100 * value.mean + deviation)
                axis.annotate(
                    format_score(value),
                    (ends[-1], position + offset),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
                )
        reference = next((row.scores[split]["mIoU"] for row in rows if row.is_reference and split in row.scores), None)
        if reference is not None:
            axis.axvline(100 * reference.mean, **reference_line)
        for position, row in zip(positions, rows, strict=True):
            if split not in row.scores:
                axis.annotate(
                    "not finished", (0, position), (4, 0), textcoords="offset points", va="center", fontsize=7
                )
        axis.set(xlabel=f"{split}, %", xlim=(0, max(max(ends) * 1.22, 1)), ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    labels = [row.arm + ("\n(reference)" if row.is_reference else "") for row in rows]
    axes[0][0].set_yticks(positions, labels)
    for text in axes[0][0].get_yticklabels():
        text.set_parse_math(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in _BAR_COLORS.values()]
    handles.append(plt.Line2D([], [], **reference_line))
    labels = [*_BAR_COLORS, "mIoU of the reference"]
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    if any(value.deviation is not None for row in rows for scores in row.scores.values() for value in scores.values()):
        figure.supxlabel("whiskers: standard deviation over seeds", fontsize=8)
    save_figure(figure, file)


def plot_arm_curves(
    results: Mapping[str, Mapping[int, RunResult]], arms: Sequence[str], file: str | os.PathLike
) -> None:
    """Plot training loss and validation mIoU of every arm: the mean over seeds, and their range as a band."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, max(4.2, 0.8 + 0.27 * len(arms))), layout="constrained", sharex=True
    )
    handles = {}
    for number, arm in enumerate(arms):
        histories = [run.history for run in results.get(arm, {}).values()]
        if not histories:
            continue
        style = {
            "color": _COLORS[number % len(_COLORS)],
            # Different periods: no two of 28 arms look the same, and lines that coincide can be told apart.
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linewidth": 1.6,
        }
        for axis, name, factor in ((left, "train_loss", 1.0), (right, "mIoU", 100.0)):
            positions, values = _curves(histories, name)
            (handles[arm],) = axis.plot(positions, factor * values.mean(axis=0), markersize=4, **style)
            if len(values) > 1:
                low, high = factor * values.min(axis=0), factor * values.max(axis=0)
                axis.fill_between(positions, low, high, color=style["color"], alpha=0.12, linewidth=0)
    left.set(xlabel="epoch", ylabel="training loss")  # not from 0, so that the arms can be told apart
    right.set(xlabel="epoch", ylabel="validation mIoU, %", ylim=(0, None))
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if handles:
        legend = figure.legend(
            handles.values(), handles, loc="outside right upper", frameon=False, fontsize=8, handlelength=3
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    save_figure(figure, file)


def _curves(histories: Sequence[Sequence[Mapping[str, Any]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs (E,) of the evaluations that all seeds have, and a value at each of them (seeds, E)."""
    length = min(map(len, histories))  # early stopping ends runs at different times
    first = histories[0][:length]
    epochs = np.array([record["epoch"] for record in first], float)
    if len(set(epochs)) < len(epochs):  # several evaluations in an epoch
        per_epoch = first[-1]["step"] / max(first[-1]["epoch"], 1)
        epochs = np.array([record["step"] for record in first]) / max(per_epoch, 1)
    return epochs, np.array([[record[name] for record in history[:length]] for history in histories])
