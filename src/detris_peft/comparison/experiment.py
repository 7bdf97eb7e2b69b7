"""Experiment files: which arms are compared, on which splits and with which seeds."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..field_types import has_type
from ..safe_loading import read_yaml

_SHIPPED = importlib.resources.files(__package__ or "") / "experiments"
_KEYS = ("reference", "seeds", "splits", "common", "arms")
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")
_MAX_SEED = 2**31 - 1

# Options of `detris train` that `detris compare` sets itself, and what to use instead.
SET_BY_COMPARE = {
    "config": "set the options under common",
    "hub_private": "push a run's best/ when the comparison is finished",
    "output_dir": "pass --output_dir on the command line",
    "overwrite": "choose another --output_dir, or remove the files of a run",
    "overwrite_output_dir": "choose another --output_dir, or remove the files of a run",
    "push_to_hub": "push a run's best/ when the comparison is finished",
    "resume": "runs are resumed in any case",
    "seed": "set seeds",
    "streaming": "convert the dataset with `detris data convert`",
}

# Checks options of `detris train`, and returns them under flat names: (options, where) -> options.
OptionCheck = Callable[[Any, str], dict[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """A comparison of several configurations (arms) of the same training.

    Attributes:
        name: name of the file, without its suffix.
        reference: the arm that the others are compared with.
        seeds: each arm is trained once per seed.
        splits: splits that are scored with the best checkpoint of each run.
        common: options of all arms.
        arms: options of each arm, which override the common ones.
    """

    name: str
    reference: str
    seeds: list[int]
    splits: list[str]
    common: dict[str, Any]
    arms: dict[str, dict[str, Any]]

    def options(self, arm: str) -> dict[str, Any]:
        """Return all options of an arm. An adapter that the arm sets replaces the common one completely."""
        return _merged(self.common, self.arms[arm])

    def with_common(self, options: Mapping[str, Any]) -> Experiment:
        """Return a copy with other values of some common options; an adapter is replaced completely."""
        return replace(self, common=_merged(self.common, options))

    @contextmanager
    def naming(self, arm: str) -> Iterator[None]:
        """Add the arm to the message of an OSError or a ValueError, which is raised as a ValueError."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name}: arms.{arm}: {one_line(error)}") from error

    def select(self, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> list[tuple[str, int]]:
        """Return the runs (arm, seed) of some arms and seeds in the order in which they are trained.

        Args:
            arms: names of arms; None: all.
            seeds: seeds; None: all.

        Raises:
            ValueError: the experiment has no such arm or seed.
        """
        for option, given, existing in (("--only", arms, [*self.arms]), ("--seeds", seeds, self.seeds)):
            unknown = [value for value in given or () if value not in existing]
            if unknown:
                raise ValueError(
                    f"{option}: expected some of {', '.join(map(str, existing))}, got {unknown[0]}; correct it, or "
                    f"add it to {self.name}.yaml."
                )
        return [
            (arm, seed)
            for seed in self.seeds
            if seeds is None or seed in seeds
            for arm in self.arms
            if arms is None or arm in arms
        ]


def shipped_experiments() -> tuple[str, ...]:
    """Return the names of the experiments in this package."""
    return tuple(sorted(Path(file.name).stem for file in _SHIPPED.iterdir() if file.name.endswith(".yaml")))


def read_experiment(name: str, check_options: OptionCheck) -> Experiment:
    """Read an experiment.

    Args:
        name: a YAML file, or the name of a shipped experiment.
        check_options: checks the names and types of options; see `OptionCheck`.

    Raises:
        FileNotFoundError: there is no such file, and no such shipped experiment.
        ValueError: the file is no YAML, or its content is not a valid experiment.
    """
    stem = name.removesuffix(".yaml")
    # A folder of that name is probably the output of the experiment.
    if not Path(name).is_file() and stem in shipped_experiments():
        with importlib.resources.as_file(_SHIPPED / f"{stem}.yaml") as file:
            return _parse(read_yaml(file), f"{stem}.yaml", check_options)
    if not Path(name).exists():
        raise FileNotFoundError(
            f"{name}: expected a YAML file or one of {', '.join(shipped_experiments())}, found no such file; check "
            "the path."
        )
    return _parse(read_yaml(name), name, check_options)


def _parse(content: Any, file: str, check_options: OptionCheck) -> Experiment:
    if not isinstance(content, dict):
        got = "an empty file" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{file}: expected an experiment with {', '.join(_KEYS)}, got {got}; add them.")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{file}: expected only {', '.join(_KEYS)}, got {unknown[0]!r}; move options of `detris train` to common "
            "or to an arm."
        )
    arms = content.get("arms")
    if not isinstance(arms, dict) or not arms:
        got = "none" if not arms else f"a {type(arms).__name__}"
        raise ValueError(f"{file}: arms: expected names of arms with their options, got {got}; add at least one arm.")
    _check_names(file, arms)
    reference = content.get("reference")
    if not isinstance(reference, str) or reference not in arms:
        got = "none" if reference is None else repr(reference)
        raise ValueError(f"{file}: reference: expected one of the arms {', '.join(arms)}, got {got}; correct it.")
    seeds, splits = content.get("seeds", [0]), content.get("splits", ["val"])
    _check_list(file, "seeds", seeds, int, f"integers from 0 to {_MAX_SEED}", lambda seed: 0 <= seed <= _MAX_SEED)
    _check_list(file, "splits", splits, str, "names of splits", lambda split: bool(split.strip()))
    return Experiment(
        name=Path(file).stem,
        reference=reference,
        seeds=seeds,
        splits=splits,
        common=_checked(content.get("common"), f"{file}: common", check_options),
        arms={arm: _checked(options, f"{file}: arms.{arm}", check_options) for arm, options in arms.items()},
    )


def _check_names(file: str, arms: Mapping[Any, Any]) -> None:
    for name in arms:
        if not isinstance(name, str):  # YAML reads 3, no and 2026-01-31 as other values
            raise ValueError(
                f"{file}: arms: expected names as text, got {str(name)[:60]} ({type(name).__name__}); put the name in "
                "quotes."
            )
        if not _ARM_NAME.fullmatch(name) or name.endswith("."):
            raise ValueError(
                f"{file}: arms: expected names of at most 40 letters, digits and - _ . +, which become names of "
                f"folders, got {str(name)[:60]!r}; rename it."
            )
    lower = [name.lower() for name in arms]
    twice = [name for name in arms if lower.count(name.lower()) > 1]
    if twice:  # folders with these names are the same on some file systems
        raise ValueError(
            f"{file}: arms: expected names that differ in more than case, got {twice[0]} and {twice[1]}; rename one."
        )


def _check_list(
    file: str, key: str, values: Any, kind: type, description: str, is_valid: Callable[[Any], bool]
) -> None:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{file}: {key}: expected a list of {description}, got {values!r:.60}; correct it.")
    for value in values:
        if not has_type(value, kind) or not is_valid(value):
            raise ValueError(f"{file}: {key}: expected {description}, got {value!r:.60}; correct it.")
        if values.count(value) > 1:
            raise ValueError(f"{file}: {key}: expected different {description}, got {value!r:.60} twice; remove one.")


def _checked(options: Any, where: str, check_options: OptionCheck) -> dict[str, Any]:
    for name in options if isinstance(options, dict) else ():
        if name in SET_BY_COMPARE:
            raise ValueError(
                f"{where}: expected options that `detris compare` does not set itself, got {name}; remove it, and "
                f"{SET_BY_COMPARE[name]}."
            )
    return check_options(options, where)


def _merged(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those of others, of which an adapter replaces the earlier one completely."""
    groups = {_group(name) for name in others}
    return {**{name: value for name, value in options.items() if _group(name) not in groups}, **others}


def _group(name: str) -> str:
    """Return the part of an option's name before the dot: `vision_adapter` for `vision_adapter.dim`."""
    return name.partition(".")[0]
