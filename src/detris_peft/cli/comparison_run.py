"""Train and score the arms of a comparison, and write its report; implements `detris compare`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState

from ..comparison import (
    OUTPUT_FILES,
    SET_BY_COMPARE,
    Arm,
    Experiment,
    Report,
    Runner,
    check_folder,
    check_result,
    prepare_folder,
    read_result,
)
from ..comparison.panels import sample_positions
from ..comparison.settings import (
    as_json,
    comparable,
    first_difference,
    model_settings,
    training_settings,
    without_paths,
)
from ..data import BadRows
from ..errors import one_line
from ..modeling import DetrisConfig
from ..modeling.parameter_counts import count_parameters, meta_model
from ..training import TrainingInterrupted
from ..training.batching import GlobalBatches
from ..training.distributed import run_on_all_ranks
from ..training.fingerprint import dataset_fingerprint, frozen_weights_fingerprint
from ..training.trackers import check_trackers
from .backbone_options import KINDS
from .backbone_selection import Backbone, load_backbone
from .initial_checkpoint import find_initial_checkpoint
from .train_options import TrainOptions, with_recipe
from .training_run import check_leaks, create_config, run_training, start_processes


def run_comparison(
    experiment: Experiment,
    options: Mapping[str, TrainOptions],
    runs: Sequence[tuple[str, int]],
    own: Mapping[str, Any],
) -> None:
    """Train and score the runs that are not finished, and write the report.

    Args:
        experiment: the experiment.
        options: the options of every arm.
        runs: the runs (arm, seed) of this call.
        own: the options of `detris compare` itself; those that are not given are None.

    Raises:
        OSError, ValueError: an arm cannot be trained, or the folder holds results of another experiment.
        TrainingInterrupted: after SIGINT or SIGTERM, once the run is saved.
    """
    folder = Path(own["output_dir"])
    check_folder(folder, OUTPUT_FILES)
    source, skip_bad_rows = options[experiment.reference].source, options[experiment.reference].training.skip_bad_rows

    def load_rows(split: str) -> Any:
        return source.load_valid(split, BadRows() if skip_bad_rows else None)

    report = Report(folder, experiment, load_rows, own["samples"], own["figure_rows"] or 6)
    if own["report_only"]:
        _check_existing(folder, experiment, options)
        prepare_folder(folder)
        _print_report(report)
        return
    state = start_processes()
    try:
        rows = {split: load_rows(split) for split in experiment.splits}
        sample_positions(rows[experiment.splits[0]], experiment.splits[0], own["samples"] or ())
        arms = _prepare(experiment, options, load_rows, rows, state)
        _on_main(state, lambda: _check_and_create(folder, experiment, arms))
        Runner(folder, arms, rows, state, lambda: _update_report(report)).run(runs)
        if state.is_main_process:
            _print_report(report)
    except TrainingInterrupted:
        state.destroy_process_group()
        raise
    except KeyboardInterrupt:
        raise TrainingInterrupted("Stopped. To continue, run the same command again.", signal.SIGINT) from None
    state.destroy_process_group()  # not after an error on one rank: the others may block


# -- preparation ------------------------------------------------------------------------------------------------------


def _prepare(
    experiment: Experiment,
    options: Mapping[str, TrainOptions],
    load_rows: Callable[[str], Any],
    rows: Mapping[str, datasets.Dataset],
    state: PartialState,
) -> dict[str, Arm]:
    """Check the data, and build the model of every arm without memory for its weights, before the first is trained.

    Raises:
        ValueError: a split shares images with the training split, or an arm cannot be trained.
    """
    run, source = options[experiment.reference].run, options[experiment.reference].source
    train_rows = rows[run.train_split] if run.train_split in rows else load_rows(run.train_split)
    val_rows = rows[run.val_split] if run.val_split in rows else load_rows(run.val_split)
    for split, scored in {run.val_split: val_rows, **rows}.items():
        if split != run.train_split:
            check_leaks(train_rows, scored, source, split)
    data = {
        "train": dataset_fingerprint(train_rows, 0),
        "val": dataset_fingerprint(val_rows, 0),
        "scored": {split: dataset_fingerprint(scored, 0) for split, scored in rows.items()},
    }
    weights: dict[Any, str] = {}
    arms = {}
    for arm, arm_options in options.items():
        with experiment.naming(arm):
            arms[arm] = _prepare_arm(arm, arm_options, data, len(train_rows), weights, state)
    return arms


def _prepare_arm(
    name: str, options: TrainOptions, data: Any, number_of_rows: int, weights: dict[Any, str], state: PartialState
) -> Arm:
    options = with_recipe(options, number_of_rows, state.num_processes)
    run, source, backbones, training = options
    check_trackers(training.report_to)
    accumulation = training.gradient_accumulation_steps
    GlobalBatches(number_of_rows, training.batch_size, state.num_processes, 0, accumulation, training.drop_last)
    initial = find_initial_checkpoint(run.init_from, training) if run.init_from is not None else None
    config, selected = create_config(run, backbones, Path(training.output_dir) / "backbones", initial)
    parameters = count_parameters(meta_model(config))
    settings = {
        "options": _option_settings(options, state.num_processes),
        "model": model_settings(config),
        "backbones": {kind: _backbone_fingerprint(config, kind, selected[kind], weights) for kind in KINDS},
        "data": data,
    }
    if initial is not None:
        settings["init_from"] = initial.sha256

    every = {**asdict(run), **asdict(source), **asdict(backbones), **asdict(training)}

    def train(seed: int, folder: Path) -> list[dict[str, float]]:
        changed = replace(training, seed=seed, output_dir=str(folder), resume="latest")
        return run_training(options._replace(training=changed), state)

    return Arm(
        name=name,
        settings=as_json(settings),
        options=as_json({name: value for name, value in every.items() if name not in SET_BY_COMPARE}),
        parameters=parameters,
        train=train,
        eval_batch_size=training.eval_batch_size,
        num_workers=training.num_workers,
        skip_bad_rows=training.skip_bad_rows,
    )


def _option_settings(options: TrainOptions, num_processes: int) -> dict[str, Any]:
    run, tokenizer = options.run, options.backbones.tokenizer
    others = {"keep_aspect_ratio": run.keep_aspect_ratio, "train_split": run.train_split, "val_split": run.val_split}
    others["tokenizer"] = tokenizer and Path(tokenizer).name
    others["init_from"] = run.init_from and "/".join(Path(run.init_from).parts[-2:])
    return training_settings(options.training, others, num_processes)


def _backbone_fingerprint(config: DetrisConfig, kind: str, backbone: Backbone, known: dict[Any, str]) -> str:
    """Return a hash of a backbone's weights; "random" if they depend on the seed of the run."""
    if backbone.name is None:
        return "random"
    if backbone.original is not None:
        return frozen_weights_fingerprint(backbone.original.requires_grad_(False))
    key = (kind, backbone.name, getattr(config, f"{kind}_revision"))
    if key not in known:
        known[key] = frozen_weights_fingerprint(load_backbone(config, kind).requires_grad_(False))
    return known[key]


# -- results ----------------------------------------------------------------------------------------------------------


def _check_and_create(folder: Path, experiment: Experiment, arms: Mapping[str, Arm]) -> None:
    """Create the comparison's folder, after checking that the results in it are of this experiment."""
    for arm, seed in experiment.select(None, None):
        check_result(folder, arms[arm], seed, experiment.splits)
    prepare_folder(folder)


def _check_existing(folder: Path, experiment: Experiment, options: Mapping[str, TrainOptions]) -> None:
    """Raise a ValueError if there is no result, or one with other options. No data or backbones are read."""
    results = [result for run in experiment.select(None, None) if (result := read_result(folder, *run)) is not None]
    if not results:
        raise ValueError(
            f"{folder}: expected results of finished runs of {experiment.name}, got none; run the command without "
            "--report_only."
        )
    for result in results:
        own = with_recipe(options[result.arm], _number_of_references(result), result.num_processes)
        run = own.run
        expected = _option_settings(own, result.num_processes)
        model = without_paths({"preset": run.preset, **run.config_fields})
        fields_of_result = result.options.get("config_fields")
        found_model = {"preset": result.options.get("preset"), **(fields_of_result or {})}
        found = comparable({"options": result.settings.get("options")}, ())["options"]
        if experiment.options(result.arm).get("precision", "auto") == "auto":  # the run may be of another machine
            expected, found = ({k: v for k, v in o.items() if k != "precision"} for o in (expected, found or {}))
        pairs = (("options", expected, found), ("model", model, found_model))
        for part, wanted, got in pairs:
            if difference := first_difference({part: as_json(wanted)}, {part: got}):
                raise ValueError(
                    f"{folder}: {result.name}: expected a result with the options of the experiment, got another one "
                    f"({difference}); choose another --output_dir, or remove that result."
                )


def _number_of_references(result: Any) -> int | None:
    """Return the size of the training split of a result; None if the file does not state it."""
    data = result.settings.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    number = train.get("number") if isinstance(train, Mapping) else None
    return number if isinstance(number, int) and number > 0 else None


def _update_report(report: Report) -> None:
    """Write the report between two runs. A failure does not stop the runs: their results are already saved."""
    try:
        report.write()
    except (ImportError, OSError, ValueError) as error:
        print(f"Warning: the report could not be updated: {one_line(error)}")


def _print_report(report: Report) -> None:
    notices = report.write()
    print((report.folder / "table.md").read_text(encoding="utf-8"))
    for notice in notices:
        print(notice)
    print(f"wrote {report.folder / 'report.md'}")


def _on_main(state: PartialState, action: Callable[[], Any]) -> None:
    if failure := run_on_all_ranks(state, action, main_only=True):
        raise ValueError(failure)
