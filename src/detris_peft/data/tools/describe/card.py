"""Dataset card (README.md) of a dataset whose sentences are made by rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..card_text import cell, code, header, license_table, table
from .expressions import KINDS

_RULES = {
    "class": "it is the only object of its class",
    "color": "most of its pixels clearly have this color, and all others of its class lack it",
    "size": "it has at least twice (or at most half) the area of every other object of its class",
    "position": "it is the only one of its class on that side or in the middle of the image, or clearly the outermost",
    "order": "its place in a row or column of objects of its class",
    "relation": "it is the only one of its class on that side of, or next to, an object whose class occurs once",
}


def description_card(
    name: str,
    source: str,
    counts: Mapping[str, Any],
    min_area: float,
    max_expressions: int,
    seed: int,
) -> str:
    """Return the README.md of the output of `detris data describe`.

    Args:
        name: name of the new dataset.
        source: name of the described dataset, without folders, which are private.
        counts: `DescribedSplit` of each split.
        min_area, max_expressions, seed: the options.
    """
    columns = ("images", "objects", "sentences")
    rules = [(kind, _RULES[kind], *(count.kinds[kind] for count in counts.values())) for kind in KINDS]
    omitted = ("small", "ambiguous", "crowds", "empty_images", "undescribed_images")
    titles = (
        "too small",
        "ambiguous",
        "crowds or masks in many parts",
        "images without annotations",
        "images without a described object",
    )
    return f"""{header(name, ["synthetic-text"])}

# {cell(code(name))}

**The sentences are rule-made.** No person wrote or checked them: `detris data describe` made them from the instance
masks and classes of `{code(source)}`, and chose among the true ones with seed {seed}.

{table(("split", *columns), _rows(counts, columns))}

## Rules

Every sentence is true of exactly one annotated object of its image, with a margin. Objects that are too small to be
described, and crowds, make a sentence ambiguous as all others do. Objects that nobody annotated do not: a sentence can
be ambiguous in the photo. "Left" and "right" are those of the image.

{table(("kind", "rule", *counts), rules)}

Only objects that cover at least {100 * min_area:g}% of their image are described or mentioned. An object has at most
{max_expressions} sentences, of different kinds if possible. The remaining objects have no sentence:

{table(("split", *titles), _rows(counts, omitted))}

## Licenses

The images are the original files, byte for byte. **The licenses of images and annotations are unchanged.**
{_licenses(counts)}

## Format

`metadata.jsonl` has one line per object, with its image, mask and sentences, the `kinds` of the sentences, the id of
its annotation and its class. To train on it: `detris train --dataset path`.
"""


def _licenses(counts: Mapping[str, Any]) -> str:
    licenses = license_table(count.licenses for count in counts.values())
    if licenses is None:
        return "The source names no license of an image."
    note = "The source names licenses, which are also in `metadata.jsonl` with the addresses of the images:"
    return f"{note}\n\n{licenses}"


def _rows(counts: Mapping[str, Any], columns: tuple[str, ...]) -> list[tuple]:
    return [(split, *(getattr(count, column) for column in columns)) for split, count in counts.items()]
