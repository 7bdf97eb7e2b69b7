"""Comparison of configurations by the same training, data and seeds: Tables 2 and 3 and Figure 2 of the paper."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .experiment import SET_BY_COMPARE, Experiment, read_experiment, shipped_experiments
    from .report import OUTPUT_FILES, Report
    from .results import RunResult, read_result
    from .runner import Arm, Runner, check_folder, check_result, prepare_folder
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "experiment": ("SET_BY_COMPARE", "Experiment", "read_experiment", "shipped_experiments"),
            "report": ("OUTPUT_FILES", "Report"),
            "results": ("RunResult", "read_result"),
            "runner": ("Arm", "Runner", "check_folder", "check_result", "prepare_folder"),
        },
    )

__all__ = [
    "OUTPUT_FILES",
    "SET_BY_COMPARE",
    "Arm",
    "Experiment",
    "Report",
    "RunResult",
    "Runner",
    "check_folder",
    "check_result",
    "prepare_folder",
    "read_experiment",
    "read_result",
    "shipped_experiments",
]
