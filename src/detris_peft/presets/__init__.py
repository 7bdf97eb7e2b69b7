"""Presets: the published model configurations with their training recipes, and the CPU-sized `tiny`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from ..lazy_names import lazy_names
from .recipes import Recipe, get_recipe, list_recipes

if TYPE_CHECKING:
    from ..modeling import DetrisConfig
    from .cpu_sized import random_backbones, tiny
    from .detris import detris_b, detris_b_half, detris_b_plus, detris_l, detris_l_mixed
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "cpu_sized": ("random_backbones", "tiny"),
            "detris": ("detris_b", "detris_b_half", "detris_b_plus", "detris_l", "detris_l_mixed"),
        },
    )

__all__ = [
    "DEFAULT_PRESET",
    "Published",
    "Recipe",
    "detris_b",
    "detris_b_half",
    "detris_b_plus",
    "detris_l",
    "detris_l_mixed",
    "get",
    "get_recipe",
    "list_presets",
    "list_recipes",
    "published",
    "random_backbones",
    "recipe",
    "tiny",
]

DEFAULT_PRESET = "detris-b"


class Published(NamedTuple):
    """What the paper reports for a preset. None of it was measured by us.

    Attributes:
        source: the table of the paper.
        backbone_update: number of trained parameters outside the head, as printed, in millions; None if the table has
            no such column.
        miou: mIoU on RefCOCO val, testA and testB in %, and their average, as printed; None if not stated. The scores
            of the larger models are in docs/reproduce.md.
    """

    source: str
    backbone_update: str | None = None
    miou: tuple[float, ...] | None = None


class _Preset(NamedTuple):
    function: str  # module and name of the function that returns the config; imported when it is called
    recipe: Mapping[str, Any]
    published: Published | None = None


# Recipes hold only what differs from the defaults of `TrainingArguments`. The paper's recipe for DETRIS-L doubles
# batch size and learning rate. The authors' configurations have one learning rate for all weights, so every row of
# Tables 2 and 3 has the recipe of DETRIS-B.
_B_RECIPE = {"precision": "auto"}
_L_RECIPE = {**_B_RECIPE, "batch_size": 64, "learning_rate": 2e-4}
_TINY_RECIPE = {
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "milestones": [3],
    "max_grad_norm": 1.0,
    "num_workers": 0,
}


def _row(function: str, published: Published | None = None) -> _Preset:
    return _Preset(function, _B_RECIPE, published)


_PRESETS: dict[str, _Preset] = {
    "detris-b": _row("detris.detris_b", Published("Table 2", "2.71", (76.0, 78.2, 73.5, 75.9))),
    "detris-b-half": _row("detris.detris_b_half", Published("Table 2", "1.36", (75.8, 77.7, 72.9, 75.5))),
    "detris-b-plus": _row("detris.detris_b_plus"),
    "detris-l": _Preset("detris.detris_l", _L_RECIPE),
    "detris-l-mixed": _Preset("detris.detris_l_mixed", _L_RECIPE),
    "table2-full": _row("comparisons.full_tuning", Published("Table 2", "149.97", (65.1, 68.1, 61.4, 64.9))),
    "table2-fixed": _row("comparisons.fixed_backbone", Published("Table 2", "0.00", (74.9, 77.1, 72.0, 74.7))),
    "table2-adapter": _row("comparisons.adapter", Published("Table 2", "1.98", (71.2, 73.3, 68.3, 70.9))),
    "table2-houlsby": _row("comparisons.houlsby"),
    "table2-compacter": _row("comparisons.compacter", Published("Table 2", "1.62", (73.9, 75.8, 70.8, 73.5))),
    "table2-compacter-112": _row("comparisons.compacter_112"),
    "table2-lora": _row("comparisons.lora", Published("Table 2", "1.57", (73.4, 75.7, 70.2, 73.1))),
    "table2-etris": _row("comparisons.etris", Published("Table 2", "1.38", (74.5, 76.5, 72.9, 74.6))),
    "table3-none": _row("comparisons.fixed_backbone", Published("Table 3", None, (74.9, 77.1, 71.9, 74.6))),
    "table3-da": _row("comparisons.dense_aligner_only", Published("Table 3", None, (75.4, 77.3, 72.5, 75.0))),
    "table3-ta": _row("comparisons.text_adapter_only", Published("Table 3", None, (75.9, 77.5, 72.7, 75.4))),
    "tiny": _Preset("cpu_sized.tiny", _TINY_RECIPE),
}


def list_presets() -> tuple[str, ...]:
    """Return the names of the presets."""
    return tuple(_PRESETS)


def get(name: str) -> DetrisConfig:
    """Return a new config of a preset.

    Raises:
        ValueError: no preset has this name; the message lists the presets.
    """
    module, function = _find(name).function.split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)()


def recipe(name: str) -> dict[str, Any]:
    """Return the training recipe of a preset: values of `TrainingArguments` that differ from its defaults.

    Raises:
        ValueError: no preset has this name; the message lists the presets.
    """
    return copy.deepcopy(dict(_find(name).recipe))


def published(name: str) -> Published | None:
    """Return what the paper reports for a preset, or None if it has no row in Tables 2 and 3.

    Raises:
        ValueError: no preset has this name; the message lists the presets.
    """
    return _find(name).published


def _find(name: str) -> _Preset:
    if name not in list_presets():
        raise ValueError(f"preset: expected one of {', '.join(_PRESETS)}, got {name!r}.")
    return _PRESETS[name]
