"""Configuration fields shared by all adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

DEFAULT_LAYERS = (1, 3, 5, 7, 9, 11)


@dataclass
class ParallelAdapterConfig(PeftConfig):
    """Configuration of a parallel adapter for the MLPs of a transformer encoder.

    Args:
        dim: bottleneck width D, a multiple of 16 (D-MoC's narrowest branch has D/16 channels).
        layers_to_transform: blocks that get an adapter, counted from 0; None for all. Omit it if `target_modules`
            selects the blocks: a regular expression, or names that contain the index of a block.
        scale: factor applied to the branch's output before it is added to the MLP's output.
        init_weights: `"paper"`, or `"identity"`: the up-projection starts at zero, so that the adapted backbone equals
            the plain one until the first step.
        target_modules: modules that get a parallel adapter: names within a block (`["mlp"]`), full names, or a regular
            expression over full names. Not needed for known backbones.
        exclude_modules: modules to skip, as names or a regular expression.
        layers_pattern: name of the list of blocks. Not needed for known backbones.
        input_module: name, within the block, of the submodule whose inputs contain the adapter's second input. Needed
            only for backbones that are not listed in `detris_peft.adapters.block_layouts`.
        modules_to_save: further modules of the backbone to train and save completely.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.
    """

    dim: int = 64
    layers_to_transform: list[int] | int | None = field(default_factory=lambda: list(DEFAULT_LAYERS))
    scale: float = 0.2  # not in the paper; the value of the released implementation
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
            raise ValueError(
                f"dim={self.dim}: expected a positive multiple of 16; D-MoC has convolutions of width dim/16."
            )
        if self.init_weights not in ("paper", "identity"):
            raise ValueError(f'init_weights={self.init_weights!r}: expected "paper" or "identity".')
        if self.target_modules == "all-linear":
            raise ValueError(
                'target_modules="all-linear" is not supported: target the MLP of a block, or leave target_modules '
                "unset."
            )
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is not None:
            layers = as_list(layers)
            if not layers or any(not isinstance(i, int) or i < 0 for i in layers):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform}: expected at least one block, counted from 0; "
                    "for a model without this adapter, omit the adapter."
                )
        targets = self.target_modules
        if isinstance(targets, str) or (targets and any(map(has_block_index, targets))):
            # The targets select the blocks; an explicit `layers_to_transform` still applies.
            if layers == list(DEFAULT_LAYERS):
                self.layers_to_transform = None
            elif layers is not None and isinstance(targets, str):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform} has no effect with the regular expression "
                    f"target_modules={targets!r}; select the blocks in one of the two."
                )

    def match_block(self, key: str) -> re.Match[str] | None:
        """Match the block's path and index (groups 1 and 2) in a module name; return None outside the blocks."""
        patterns = "|".join(as_list(self.layers_pattern))
        return re.match(rf"((?:.*?\.)?(?:{patterns})\.(\d+))(?:\.|$)", key)


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def has_block_index(name: str) -> bool:
    """Return whether a module name contains the index of a block, as `layer.3.mlp` does."""
    return re.search(r"(^|\.)\d+\.", name) is not None
