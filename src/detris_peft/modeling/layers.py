"""Choice of blocks for encoders of different depths."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_DEPTH = 12  # of the encoders that the default blocks refer to


def scale_layers(layers: Sequence[int], depth: int, own_depth: int) -> list[int]:
    """Return the blocks of an encoder that are at the same relative depth as those of another one.

    Args:
        layers: blocks of an encoder with `own_depth` blocks, counted from 0.
        depth: number of blocks of the other encoder.
        own_depth: number of blocks that `layers` refers to.
    """
    if depth == own_depth:
        return list(layers)
    return list(dict.fromkeys(max(0, round((i + 1) * depth / own_depth) - 1) for i in layers))
