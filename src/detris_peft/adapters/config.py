"""Configuration fields shared by all adapters, by the parallel ones, and by the sequential ones."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_type_hints

from peft import PeftConfig

from ..field_types import describe_type, has_type
from .registry import registered_type, type_name

DEFAULT_LAYERS = (1, 3, 5, 7, 9, 11)
# Upper bounds of the sizes, far above any useful value: a config may come from an untrusted file.
MAX_DIM = 16_384
MAX_TEXT_DIM = 65_536
ACTIVATIONS = ("gelu", "quick_gelu", "relu", "silu", "tanh")  # names of transformers


@dataclass
class AdapterConfig(PeftConfig):
    """Configuration fields of all adapters: which modules get one, and how its output is added.

    Args:
        dim: bottleneck width D.
        layers_to_transform: blocks that get an adapter, counted from 0; None for all. Omit it if `target_modules`
            selects the blocks: a regular expression, or names that contain the index of a block.
        scale: factor applied to the branch's output before it is added.
        init_weights: `"paper"`, or `"identity"`: the up-projection starts at zero, so that the adapted backbone equals
            the plain one until the first step.
        target_modules: modules that get an adapter: names within a block (`["mlp"]`), full names, or a regular
            expression over full names. Not needed for known backbones.
        exclude_modules: modules to skip, as names or a regular expression.
        layers_pattern: name of the list of blocks. Not needed for known backbones.
        modules_to_save: further modules of the backbone to train and save completely.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.
    """

    dim: int = 64
    layers_to_transform: list[int] | int | None = None
    scale: float = 1.0
    init_weights: str = "paper"
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    # Not fields: the encoders that the adapter is for ("image", "text", None for both), the blocks by default, and
    # whether the scale is trained, which is a field of the parallel adapters.
    encoder_kind: ClassVar[str | None] = None
    default_layers: ClassVar[tuple[int, ...] | None] = None
    learn_scale = False
    # Not a field: whether peft read the config in order to load the weights of the same folder.
    is_from_file: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> AdapterConfig:
        # Not in `__init__`: peft catches its TypeError for an unknown name, and drops the field with a warning.
        parameters = inspect.signature(cls.__init__).parameters
        for name in kwargs.keys() - parameters.keys():
            nearest = difflib.get_close_matches(name, parameters, n=1)
            fix = f"use {nearest[0]}" if nearest else "remove it, or install the version that wrote it"
            raise ValueError(f"{name}: expected a field of {cls.__name__}, got an unknown name; {fix}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        own_type = registered_type(type(self))
        if self.peft_type not in (None, own_type):
            raise ValueError(
                f"peft_type={type_name(self.peft_type)!r}: expected {type_name(own_type)}, the type of "
                f"{type(self).__name__}; remove peft_type, or register the class with detris_peft.adapters.register."
            )
        self.peft_type = own_type
        self._check_types()
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check_dim()
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale}: expected a finite number; correct it.")
        if self.init_weights not in ("paper", "identity"):
            raise ValueError(f'init_weights={self.init_weights!r}: expected "paper" or "identity".')
        if self.target_modules == "all-linear":
            raise ValueError(
                'target_modules="all-linear" is not supported: target the MLP of a block, or leave target_modules '
                "unset."
            )
        self._check_layers()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PeftConfig:
        """Read the config of a saved adapter; see `PeftConfig.from_pretrained`."""
        config: Any = super().from_pretrained(*args, **kwargs)
        config.is_from_file = True
        return config

    def _check_types(self) -> None:
        """Convert sequences to lists, and raise a ValueError for a field of a wrong type or an invalid pattern."""
        types = get_type_hints(type(self))
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, (tuple, range)):
                setattr(self, name, value := list(value))
            # The blocks have their own check.
            if name != "layers_to_transform" and not has_type(value, types[name]):
                raise ValueError(f"{name}={value!r}: expected {describe_type(types[name])}; correct it.")
        patterns = [("layers_pattern", pattern) for pattern in as_list(self.layers_pattern) if pattern is not None]
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), str):
                patterns.append((name, getattr(self, name)))
        for name, pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"{name}={pattern!r}: expected a regular expression, got an invalid one ({error}); correct it."
                ) from None

    def _check_dim(self) -> None:
        check_size("dim", self.dim, MAX_DIM)

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is not None:
            layers = as_list(layers)
            if not layers or any(type(i) is not int or i < 0 for i in layers):
                raise ValueError(
                    f"layers_to_transform={self.layers_to_transform}: expected at least one block, counted from 0; "
                    "for a model without this adapter, omit the adapter."
                )
        targets = self.target_modules
        if isinstance(targets, str) or (targets and any(map(has_block_index, targets))):
            # The targets select the blocks; an explicit `layers_to_transform` still applies.
            if self.default_layers is not None and layers == list(self.default_layers):
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


@dataclass
class ParallelAdapterConfig(AdapterConfig):
    """Configuration of a parallel adapter for the MLPs of a transformer encoder.

    The fields are those of [`AdapterConfig`], `learn_scale` and `input_module`.

    Args:
        dim: bottleneck width D, a multiple of 16 (D-MoC's narrowest branch has D/16 channels).
        learn_scale: train the scale of each adapter, kept in (0, 1) by a sigmoid; `scale` is its initial value.
        input_module: name, within the block, of the submodule whose inputs contain the adapter's second input. Needed
            only for backbones that are not listed in `detris_peft.adapters.block_layouts`.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.
    """

    layers_to_transform: list[int] | int | None = field(default_factory=lambda: list(DEFAULT_LAYERS))
    scale: float = 0.2  # not in the paper; the value of the released implementation
    learn_scale: bool = False
    input_module: str | None = None

    default_layers: ClassVar[tuple[int, ...] | None] = DEFAULT_LAYERS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_scale and not 0 < self.scale < 1:
            raise ValueError(
                f"scale={self.scale}: expected a value above 0 and below 1 with learn_scale, whose scale stays in "
                "this range; correct it, or set learn_scale=False."
            )

    def _check_dim(self) -> None:
        if self.dim < 16 or self.dim % 16:
            raise ValueError(
                f"dim={self.dim}: expected a positive multiple of 16; D-MoC has convolutions of width dim/16."
            )
        super()._check_dim()


@dataclass
class SequentialAdapterConfig(AdapterConfig):
    """Configuration of an adapter on the outputs of modules of a block, inside the residual connection.

    Fields that are not listed here are those of [`AdapterConfig`].

    Args:
        after_attention: also add an adapter on the output of the attention of each block. It has no effect if
            `target_modules` is given.
        activation: nonlinearity of the bottleneck: gelu, quick_gelu, relu, silu or tanh.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.
    """

    after_attention: bool = False
    activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}; correct it.")


def check_size(name: str, value: int, maximum: int) -> None:
    """Raise a ValueError if a size is not in 1 to `maximum`."""
    if not 1 <= value <= maximum:
        raise ValueError(f"{name}={value}: expected a size from 1 to {maximum:,}; correct it.")


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def has_block_index(name: str) -> bool:
    """Return whether a module name contains the index of a block, as `layer.3.mlp` does."""
    return re.search(r"(^|\.)\d+\.", name) is not None
