"""Result of `split_dataset`, and its JSON form for `detris data split --report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class WrittenSplit:
    """Counts of one split.

    Args:
        images: number of images.
        references: number of references, those without a target included.
        sentences: sentences of all references.
        no_target: references without a target.
        licenses: images per license, as the lines of the source name it; "" for images without one.
    """

    images: int = 0
    references: int = 0
    sentences: int = 0
    no_target: int = 0
    licenses: Counter[str] = field(default_factory=Counter)


@dataclass
class DuplicateGroup:
    """Near-duplicates, which are kept in one split.

    Args:
        split: the split that they are in.
        images: their names in the output, relative to its folder.
        source_splits: the splits of the source that they are from.
    """

    split: str
    images: list[str]
    source_splits: list[str]


@dataclass
class SplitResult:
    """Result of `split_dataset`.

    Args:
        splits: counts, keyed by split.
        fractions: requested share of the references per split.
        seed, max_distance: the options.
        groups: groups of two or more near-duplicates, the largest first.
        flagged: lines that are not used because their mask is flagged, see `detris data review`.
        renumbered: ids of the source collided, so the ids of the output are new.
    """

    splits: Mapping[str, WrittenSplit]
    fractions: Mapping[str, float]
    seed: int
    max_distance: int
    groups: list[DuplicateGroup] = field(default_factory=list)
    flagged: int = 0
    renumbered: bool = False

    def share(self, split: str) -> float:
        """Return the share of the references that are in a split."""
        return self.splits[split].references / sum(counts.references for counts in self.splits.values())

    def notices(self) -> list[str]:
        """Return what the user should know about the result, one line each."""
        notices = []
        for split, fraction in self.fractions.items():
            if abs(self.share(split) - fraction) > max(0.02, fraction / 4):
                notices.append(
                    f"{split} has {self.share(split):.1%} of the references instead of {fraction:.1%}: the references "
                    "of an image and its near-duplicates are not divided"
                )
        across = [group for group in self.groups if len(group.source_splits) > 1]
        if across:
            images = sum(len(group.images) for group in across)
            notices.append(
                f"groups of near-duplicates from several splits of the source: {len(across):,} ({images:,} images), "
                f"for example {across[0].images[0]} and {across[0].images[1]}"
            )
        if self.flagged:
            notices.append(f"lines that are not used because 'bad_mask' is true: {self.flagged:,}")
        if self.renumbered:
            notices.append(
                "ids of the joined splits collided, so ref_id, ann_id and image_id are new; source_split and "
                "source_ref_id of each line name the earlier reference"
            )
        return notices

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-compatible data.

        Returns::

            {"seed": int, "max_distance": int, "flagged": int, "renumbered": bool,
             "splits": {split: {"fraction": float, "share": float, "images": int, "references": int,
                                "sentences": int, "no_target": int}},
             "near_duplicates": [{"split": str, "images": [str], "source_splits": [str]}],
             "notices": [str]}
        """
        counts = ("images", "references", "sentences", "no_target")
        return {
            "seed": self.seed,
            "max_distance": self.max_distance,
            "flagged": self.flagged,
            "renumbered": self.renumbered,
            "splits": {
                split: {
                    "fraction": self.fractions[split],
                    "share": self.share(split),
                    **{name: getattr(written, name) for name in counts},
                }
                for split, written in self.splits.items()
            },
            "near_duplicates": [vars(group) for group in self.groups],
            "notices": self.notices(),
        }
