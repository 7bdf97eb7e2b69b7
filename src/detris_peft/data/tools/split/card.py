"""Dataset card (README.md) of the output of `detris data split`."""

from __future__ import annotations

from ..card_text import cell, code, header, license_table, table
from .result import SplitResult


def split_card(name: str, source: str, result: SplitResult) -> str:
    """Return the README.md of the output.

    Args:
        name: name of the new dataset.
        source: name of the dataset that was split, without folders, which are private.
        result: what was written.
    """
    rows = [
        (split, counts.images, counts.references, counts.sentences, f"{result.share(split):.1%}")
        for split, counts in result.splits.items()
    ]
    return f"""{header(name)}

# {cell(code(name))}

`{code(source)}`, split by image with `detris data split` (seed {result.seed}). No image is in two splits.
{_near_duplicates(result)}

{table(("split", "images", "references", "sentences", "share of the references"), rows)}

## Licenses

The images are the original files, byte for byte. **The licenses of images and annotations are unchanged.**
{_licenses(result)}

## Format

`metadata.jsonl` has one line per reference, with its image, mask, sentences and ids, and the other fields of the
source's lines. To train on it: `detris train --dataset path`.
"""


def _near_duplicates(result: SplitResult) -> str:
    rule = f"images whose perceptual hashes differ in at most {result.max_distance} of 64 bits"
    if not result.groups:
        return f"There are no near-duplicates ({rule})."
    images = sum(len(group.images) for group in result.groups)
    return (
        f"{images:,} images have near-duplicates ({rule}),\nsuch as resized, recompressed or mirrored copies. "
        f"Near-duplicates are in one split; groups of them: {len(result.groups):,}."
    )


def _licenses(result: SplitResult) -> str:
    licenses = license_table(counts.licenses for counts in result.splits.values())
    if licenses is None:
        return "The source names no license of an image in its lines."
    return f"The lines of `metadata.jsonl` name them:\n\n{licenses}"
