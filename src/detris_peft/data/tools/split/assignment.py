"""Assign groups of images to splits so that each split has its share of the references."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial


def assign_groups(groups: Mapping[str, int], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the split of each group.

    The result depends on the seed, the keys and the weights, not on their order. Groups that are large for the
    smallest split are assigned first, the largest at the start, and the others in an order that the seed determines.
    Each group goes to the split with the lowest (assigned + w / 2) / target, as in the method of Sainte-Laguë for the
    seats of a parliament, where w is the weight of a large group. For the others w is the mean weight, so that images
    with many references are as frequent in each split.

    Args:
        groups: weight of each group (its number of references), by a key that is the same on every machine. There are
            at least as many groups as splits.
        fractions: share of the total weight per split, each above 0.
        seed: random seed.

    Returns:
        The name of the split by key; every split has at least one group.
    """
    total = sum(groups.values())
    targets = {split: fraction * total for split, fraction in fractions.items()}
    limit, mean = min(targets.values()) / 2, total / len(groups)
    assigned = dict.fromkeys(fractions, 0)

    def order(key: str) -> tuple[float, bytes]:
        return -groups[key] if groups[key] > limit else 0, hashlib.sha256(f"{seed} {key}".encode()).digest()

    def fill(split: str, weight: float) -> float:
        return (assigned[split] + weight / 2) / targets[split]

    splits: dict[str, str] = {}
    for number, key in enumerate(sorted(groups, key=order)):
        empty = [split for split, weight in assigned.items() if not weight]
        # The last groups are for splits that have none.
        choices: Sequence[str] = empty if len(empty) >= len(groups) - number else [*fractions]
        weight = groups[key] if groups[key] > limit else mean
        splits[key] = min(choices, key=partial(fill, weight=weight))
        assigned[splits[key]] += groups[key]
    return splits
