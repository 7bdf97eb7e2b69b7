"""Training recipes for situations rather than models (`detris train --recipe`); they override that of a preset.

The command line reads them for its help, so this module imports no heavy library.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The Dice loss is added; see docs/experiments.md. `detris-b-plus` has these weights as well.
DICE_LOSS_WEIGHTS = {"bce": 1.0, "dice": 0.5}


@dataclass(frozen=True)
class Recipe:
    """A training recipe. Where steps are named, they are optimizer steps.

    Attributes:
        summary: what the recipe is for, in a few words.
        options: values of `TrainingArguments` that do not depend on the data.
        init_weights: initialization of new adapters of our own types (`AdapterConfig.init_weights`).
        loss_weights: weights of the training losses (`DetrisConfig.loss_weights`).
        steps: target number of steps, from which the epochs follow.
        epochs_range: smallest and largest number of epochs.
        decay_after: fraction of the epochs after which the learning rate is decayed.
    """

    summary: str
    options: Mapping[str, Any]
    init_weights: str
    loss_weights: Mapping[str, float]
    steps: int
    epochs_range: tuple[int, int]
    decay_after: float

    def epochs(self, references: int, samples_per_step: int) -> int:
        """Return the number of epochs with which the run has about `steps` steps, within `epochs_range`.

        Args:
            references: number of references of the training split, each of which an epoch visits once.
            samples_per_step: batch size of all processes, times the batches per step.
        """
        smallest, largest = self.epochs_range
        return min(max(round(self.steps / math.ceil(references / samples_per_step)), smallest), largest)

    def milestones(self, epochs: int) -> list[int]:
        """Return the epochs after which the learning rate is decayed, in a run of `epochs` epochs."""
        return [max(1, round(self.decay_after * epochs))]


# The values of few-images were measured on 128 photos; see docs/your-own-data.md and docs/experiments.md.
_RECIPES = {
    "few-images": Recipe(
        summary="50 to 500 images of your own",
        options={
            "batch_size": 16,
            "learning_rate": 5e-4,
            "drop_last": False,
            "ema_decay": 0.99,
            "early_stopping_patience": 5,
        },
        init_weights="identity",
        loss_weights=DICE_LOSS_WEIGHTS,
        steps=300,
        epochs_range=(10, 60),
        decay_after=0.7,
    ),
}


def list_recipes() -> tuple[str, ...]:
    """Return the names of the recipes."""
    return tuple(_RECIPES)


def get_recipe(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ValueError: no recipe has this name; the message lists the recipes.
    """
    if name not in list_recipes():
        raise ValueError(f"recipe: expected one of {', '.join(_RECIPES)}, got {name!r}; choose one, or omit --recipe.")
    return copy.deepcopy(_RECIPES[name])
