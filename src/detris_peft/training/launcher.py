"""Settings of `accelerate launch`, which the training arguments use unless an option replaces them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # of accelerate, and our names
_VARIABLES = {
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
}
_OUR_NAMES = {"mixed_precision": "precision"}


def launcher_settings() -> dict[str, Any]:
    """Return the options set by `accelerate launch`, keyed by our names: its `mixed_precision` is `precision`.

    Its mixed_precision "no" is omitted: the launcher also sends it if the user asked for nothing.

    Raises:
        ValueError: the launcher's value is not supported.
    """
    settings: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        value: Any = _set_by_launcher(name)
        if not value or value == "no":
            continue
        if name == "gradient_accumulation_steps":
            value = int(value) if value.isdecimal() else value
            is_valid, expected = isinstance(value, int) and value > 0, "at least 1"
        else:
            is_valid, expected = value in _PRECISIONS, f"one of {', '.join(_PRECISIONS)}"
        if not is_valid:
            raise ValueError(
                f"{name}: expected {expected}, got {value!r} of accelerate launch ({variable}); change it there."
            )
        settings[_OUR_NAMES.get(name, name)] = value
    return settings


def describe_ignored_launcher_settings(**used: Any) -> list[str]:
    """Return one line for each option that differs from what `accelerate launch` set: the option takes precedence.

    Args:
        used: values in use, keyed by the option's name.
    """
    lines = []
    for name in _VARIABLES:
        ours, value = _OUR_NAMES.get(name, name), _set_by_launcher(name)
        replaced = _PRECISIONS.get(value, value) if name == "mixed_precision" and value else value
        if ours in used and replaced not in (None, str(used[ours])):
            lines.append(
                f"{ours}: {used[ours]} is used, as set by the option or the preset; {name} {value} of accelerate "
                "launch is ignored."
            )
    return lines


def launched_on_cpu() -> bool:
    """Return whether `accelerate launch --cpu` started this process, which then ignores GPUs."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def _set_by_launcher(name: str) -> str | None:
    """Return the text of a setting; None if this process was not launched, or the launcher did not set it."""
    if _VARIABLES["mixed_precision"] not in os.environ:
        return None
    value = os.environ.get(_VARIABLES[name])
    if value is None and name == "gradient_accumulation_steps":  # accelerate passes it to DeepSpeed only
        steps = _launch_options().get(name)
        value = None if steps is None else str(steps)
    return value or None


def _launch_options() -> dict[str, Any]:
    """Return the options of the `accelerate launch` that started this process, keyed by name."""
    import psutil

    try:
        commands = [process.cmdline() for process in psutil.Process().parents()]
    except psutil.Error:  # a process of another user
        return {}
    return next((options for command in commands if (options := parse_launch_command(command))), {})


def parse_launch_command(command: Sequence[str]) -> dict[str, Any]:
    """Return the options on a command line of `accelerate launch`, without those of its script.

    Args:
        command: program and arguments.

    Returns:
        All options, keyed by name; nothing for another program.
    """
    from accelerate.commands.launch import launch_command_parser

    names = [Path(word).name for word in command]
    for index, name in enumerate(names[:3]):  # the program may follow an interpreter and -m
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return vars(launch_command_parser().parse_args(command[index + 1 :]))
        if name == "accelerate" and names[index + 1 : index + 2] == ["launch"]:
            return vars(launch_command_parser().parse_args(command[index + 2 :]))
    return {}
