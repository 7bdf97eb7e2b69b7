"""Compare adapters, or any other options of training, on the same data: train every arm, score it, write a report.

Every option of `detris train` is accepted too: it replaces the one under `common` in the experiment file, but not that
of an arm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..comparison.experiment import SET_BY_COMPARE, Experiment, read_experiment, shipped_experiments
from ..data.sources import DataSource
from .options_file import check_options
from .parser import CommandParser
from .train_options import TrainOptions, option_types, resolve_options, run_parser

_OWN = ("experiment", "output_dir", "only", "seeds", "samples", "figure_rows", "report_only", "list")
_MAX_FIGURE_ROWS = 50
# What all arms must share: with other data or another metric, their scores cannot be compared.
_SHARED = {
    "source": [option.name for option in fields(DataSource)],
    "run": ["train_split", "val_split"],
    "training": ["skip_bad_rows", "selection_metric", "eval_steps"],
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris compare` with these arguments; default: those of the command line."""
    given = _parse(argv, prog)
    if given.get("list"):
        _list_experiments()
        return
    own = {name: given.pop(name, None) for name in _OWN}
    experiment = read_experiment(own["experiment"], _check).with_common(given)
    runs = experiment.select(own["only"], own["seeds"])
    options = _resolve(experiment)

    from .comparison_run import run_comparison

    run_comparison(experiment, options, runs, own)


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options. Those that are not given are absent from its namespace."""
    parser = run_parser(prog, __doc__)
    parser.add_argument(
        "experiment",
        nargs="?",
        help=f"YAML file, or the name of a shipped experiment: {', '.join(shipped_experiments())}",
    )
    add = parser.add_argument_group("options of the comparison").add_argument
    add("--only", nargs="+", metavar="ARM", help="train only these arms in this call")
    add("--seeds", nargs="+", type=int, metavar="N", help="train only these seeds in this call")
    add(
        "--samples", nargs="+", metavar="ID", help="ids of the sentences in figure2.png; default: chosen automatically"
    )
    add("--figure_rows", type=int, metavar="N", help="number of sentences that are chosen for figure2.png (6)")
    add("--report_only", action="store_true", help="train nothing; write the report from the results that exist")
    add("--list", action="store_true", help="list the shipped experiments")
    for action in parser._actions:  # an option that is not given must not hide the experiment's
        action.default = argparse.SUPPRESS
        if action.dest in SET_BY_COMPARE and action.dest != "output_dir":
            action.help = argparse.SUPPRESS
    return parser


def _parse(argv: Sequence[str] | None, prog: str | None) -> dict[str, Any]:
    """Return the options that are given on the command line."""
    parser = create_parser(prog)
    words = [*(sys.argv[1:] if argv is None else argv)]
    given = vars(parser.parse_args(words))
    _check_given(parser, given)
    return given


def _check_given(parser: CommandParser, given: Mapping[str, Any]) -> None:
    if given.get("list"):
        return
    refused = [name for name in given if name in SET_BY_COMPARE and name != "output_dir"]
    if refused:
        parser.error(
            f"--{refused[0]}: expected options that compare does not set itself, got {refused[0]}; remove it, and "
            f"{SET_BY_COMPARE[refused[0]]}"
        )
    if given.get("experiment") is None:
        parser.error(f"expected an experiment ({', '.join(shipped_experiments())}, or a YAML file), got none; add it")
    if not given.get("output_dir", "").strip():
        parser.error("expected --output_dir, the folder for runs, results and the report, got none; add it")
    for name, number in (("figure_rows", given.get("figure_rows", 1)), ("samples", len(given.get("samples", [0])))):
        if not 1 <= number <= _MAX_FIGURE_ROWS:
            parser.error(f"--{name}: expected 1 to {_MAX_FIGURE_ROWS}, got {number}; change it")


def _list_experiments() -> None:
    for name in shipped_experiments():
        experiment = read_experiment(name, _check)
        print(f"{name:14}{', '.join(experiment.arms)} (reference {experiment.reference}, seeds {experiment.seeds})")


def _check(options: Any, where: str) -> dict[str, Any]:
    return check_options(options, where, option_types())


def _resolve(experiment: Experiment) -> dict[str, TrainOptions]:
    """Return the options of every arm.

    Raises:
        ValueError: an option of an arm is invalid, or its results could not be compared; the message names the arm.
    """
    resolved = {}
    for arm in experiment.arms:
        with experiment.naming(arm):
            resolved[arm] = resolve_options(experiment.options(arm))
    reference = resolved[experiment.reference]
    for arm, options in resolved.items():
        for part, names in _SHARED.items():
            for name in names:
                expected, got = (getattr(getattr(each, part), name) for each in (reference, options))
                if expected != got:
                    raise ValueError(
                        f"{experiment.name}: arms.{arm}: expected {name} of the reference arm "
                        f"{experiment.reference}, {expected!r}, got {got!r}, so that they cannot be compared; set "
                        f"{name} under common."
                    )
    return resolved
