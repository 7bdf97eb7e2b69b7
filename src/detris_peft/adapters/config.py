"""Fields that both adapters have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

DEFAULT_LAYERS = (1, 3, 5, 7, 9, 11)


@dataclass
class ParallelAdapterConfig(PeftConfig):
    """Configuration of an adapter that runs beside the MLPs of a transformer encoder.

    Args:
        dim: bottleneck width D, a multiple of 16 (D-MoC's narrowest branch has D/16 channels).
        layers_to_transform: blocks that get an adapter, counted from 0; None for all. Leave it out when
            `target_modules` says which blocks: a regular expression, or names with the number of a block in them.
        scale: factor of the branch's output before it is added to the MLP's.
        init_weights: `"paper"`, or `"identity"`: the up-projection starts at zero, so that the adapted backbone
            equals the plain one until the first step.
        target_modules: modules to put the adapter beside: names within a block (`["mlp"]`), whole names, or a regular
            expression over whole names. Known backbones need none.
        exclude_modules: modules to leave out, as names or a regular expression.
        layers_pattern: name of the list of blocks; known backbones need none.
        input_module: the module in a block that meets the adapter's second input, by its name within the block; only
            for backbones that `detris_peft.adapters.block_layouts` does not list.
        modules_to_save: further modules of the backbone to train and save whole.

    Raises:
        ValueError: a field does not fit; the message names it and says what would.
    """

    dim: int = 64
    layers_to_transform: list[int] | int | None = field(default_factory=lambda: list(DEFAULT_LAYERS))
    scale: float = 0.2  # not given in the paper; the released implementation's value
    init_weights: str = "paper"
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_pattern: list[str] | str | None = None
    input_module: str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.dim < 16 or self.dim % 16:
            raise ValueError(f"dim={self.dim} must be a positive multiple of 16: D-MoC divides it by 16.")
        if self.init_weights not in ("paper", "identity"):
            raise ValueError(f'init_weights={self.init_weights!r} is not known: use "paper" or "identity".')
        if self.target_modules == "all-linear":
            raise ValueError('target_modules="all-linear" makes no sense here: name the MLP of a block, or nothing.')
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is not None:
            layers = as_list(layers)
            if not layers or any(not isinstance(i, int) or i < 0 for i in layers):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform} must name at least one block, counted from 0; "
                    "for a model without this adapter leave the adapter out."
                )
        targets = self.target_modules
        if isinstance(targets, str) or (targets and any(map(names_a_block, targets))):
            # The targets say which blocks; only a list that somebody chose counts beside them.
            if layers == list(DEFAULT_LAYERS):
                self.layers_to_transform = None
            elif layers is not None and isinstance(targets, str):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform} has no effect beside the regular expression "
                    f"target_modules={targets!r}: name the blocks in one of the two."
                )

    def block_of(self, key: str) -> re.Match[str] | None:
        """Split a module name into (path of the block, index of the block), or None outside the blocks."""
        patterns = "|".join(as_list(self.layers_pattern))
        return re.match(rf"((?:.*?\.)?(?:{patterns})\.(\d+))(?:\.|$)", key)


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def names_a_block(name: str) -> bool:
    """Whether a module name goes into a numbered block: `layer.3.mlp`."""
    return re.search(r"(^|\.)\d+\.", name) is not None
