"""Settings of a run: everything that its result depends on, without what may differ between machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedConfig

from ..modeling import DetrisConfig
from ..modeling.bridger_config import BridgerConfig
from ..precision import with_precision
from ..training import TrainingArguments

# Training arguments that do not affect the weights or the scores of a finished run.
_WITHOUT_EFFECT = {
    "card_image",
    "eval_batch_size",
    "gradient_checkpointing",
    "hub_benchmark",
    "hub_private",
    "logging_steps",
    "num_workers",
    "output_dir",
    "overwrite",
    "push_to_hub",
    "report_to",
    "resume",
    "save_steps",
    "save_total_limit",
    "seed",  # part of the run's name
}
# Fields of configs that hold names, paths and versions. The weights of backbones are compared instead.
_NAMES = {
    "_name_or_path",
    "architectures",
    "base_model_name_or_path",
    "detris_peft_version",
    "dtype",
    "peft_version",
    "text_name_or_path",
    "text_revision",
    "transformers_version",
    "vision_name_or_path",
    "vision_revision",
}


def training_settings(training: TrainingArguments, others: Mapping[str, Any], num_processes: int) -> dict[str, Any]:
    """Return the options that affect a run and differ from their defaults.

    Defaults are omitted so that a result stays valid when a later version adds an option.

    Args:
        training: the resolved training arguments.
        others: further options; those that are false or None are omitted.
        num_processes: number of processes, by which the batch size per process is multiplied.
    """
    defaults = TrainingArguments(precision="fp32", gradient_accumulation_steps=1)  # not of accelerate launch
    values = {
        option.name: getattr(training, option.name)
        for option in fields(training)
        if option.name not in _WITHOUT_EFFECT and getattr(training, option.name) != getattr(defaults, option.name)
    }
    values["batch_size"] = training.batch_size * num_processes
    return {**values, **{name: value for name, value in others.items() if value}}


def model_settings(config: DetrisConfig) -> dict[str, Any]:
    """Return the fields of a model's config that differ from their defaults, adapters and backbones included."""
    values = _without_defaults(config.to_dict(), DetrisConfig().to_dict())
    for name in values:
        nested = getattr(config, name, None)
        if isinstance(nested, (PreTrainedConfig, PeftConfig)):
            kind = {key: values[name][key] for key in ("model_type", "peft_type") if key in values[name]}
            values[name] = {**_without_defaults(values[name], _defaults(type(nested))), **kind}
    return values


def comparable(settings: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a result without other scored splits, and without defaults that are written out.

    The precision has its current name.

    Args:
        settings: settings of a result or of an experiment.
        splits: the splits that both have.
    """
    values = dict(settings)
    data, model, options = values.get("data"), values.get("model"), values.get("options")
    if isinstance(options, Mapping):
        # fp32 is the default.
        values["options"] = {k: v for k, v in with_precision(options).items() if (k, v) != ("precision", "fp32")}
    if isinstance(data, Mapping) and isinstance(data.get("scored"), Mapping):
        scored = {split: value for split, value in data["scored"].items() if split in splits}
        values["data"] = {**data, "scored": scored}
    # The Bridger's settings hold all fields. A later version may add one, which earlier results lack.
    if isinstance(model, Mapping) and isinstance(model.get("bridger"), Mapping):
        values["model"] = {**model, "bridger": _without_defaults(model["bridger"], asdict(BridgerConfig()))}
    return values


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings, independent of the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def as_json(values: Any) -> Any:
    """Return values as they are when read from JSON: tuples become lists, sets sorted lists."""
    return json.loads(
        json.dumps(values, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def first_difference(expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> str | None:
    """Describe the first setting that differs; None if all settings are equal.

    Args:
        expected: settings of the experiment.
        found: settings of a result.
        prefix: where the settings are, for the description.
    """
    for name in sorted({*expected, *found}):
        wanted, got = (values.get(name) for values in (expected, found))
        if isinstance(wanted, Mapping) and isinstance(got, Mapping):
            if difference := first_difference(wanted, got, f"{prefix}{name}."):
                return difference
        elif wanted != got:
            texts = ("the default" if value is None else f"{value!r:.60}" for value in (wanted, got))
            return "{}: expected {}, got {}".format(prefix + name, *texts)
    return None


def without_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with absolute paths shortened to their last part, so that results can be published."""
    return {name: _shortened(value) for name, value in options.items()}


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_paths(value)
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "..")))
    return f".../{Path(value).name}" if is_path else value


def _defaults(config_class: type) -> dict[str, Any]:
    """Return the default values of a config; nothing if it cannot be created without arguments."""
    try:
        return config_class().to_dict()
    except (TypeError, ValueError):
        return {}


def _without_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if name not in _NAMES and value is not None and value != defaults.get(name)
    }
