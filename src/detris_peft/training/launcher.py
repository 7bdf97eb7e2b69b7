"""Settings of `accelerate launch`, which the training arguments use unless an option replaces them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRECISIONS = ("no", "bf16", "fp16")
_VARIABLES = {
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
}


def launcher_settings() -> dict[str, Any]:
    """Return the options set by `accelerate launch`, keyed by name.

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
            is_valid, expected = value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"
        if not is_valid:
            raise ValueError(
                f"{name}: expected {expected}, got {value!r} of accelerate launch ({variable}); change it there."
            )
        settings[name] = value
    return settings


def describe_ignored_launcher_settings(**used: Any) -> list[str]:
    """Return one line for each option that differs from what `accelerate launch` set: the option takes precedence.

    Args:
        used: values in use, keyed by the option's name.
    """
    set_by_launcher = {name: _set_by_launcher(name) for name in used}
    return [
        f"{name}: {value} is used, as set by the option or the preset; {set_by_launcher[name]} of accelerate launch "
        "is ignored."
        for name, value in used.items()
        if set_by_launcher[name] not in (None, str(value))
    ]


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
