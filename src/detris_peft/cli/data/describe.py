"""`detris data describe`: make referring expressions from instance masks and classes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.errors import BadRows
from ...data.sources import DataSource
from ...data.tools.describe.defaults import MAX_EXPRESSIONS, MIN_AREA, PREVIEW
from ...outputs import check_output_file
from .output import check_not_inside, check_splits, dataset_files, format_table, list_bad_rows, stop_on_sigterm
from .preview import check_preview, write_preview

if TYPE_CHECKING:
    from ...data.tools.describe import DescribedSplit


@dataclass
class DescribeArguments:
    """Options of `detris data describe`."""

    output: str = field(metadata={"help": "output folder, a dataset with metadata.jsonl"})
    splits: list[str] | None = field(default=None, metadata={"help": "splits to process; by default all"})
    min_area: float = field(
        default=MIN_AREA,
        metadata={
            "help": "share of the image's pixels that an object must cover to be described; smaller objects only make "
            "sentences ambiguous"
        },
    )
    max_expressions_per_object: int = field(
        default=MAX_EXPRESSIONS,
        metadata={"help": "maximum number of sentences per object, of different kinds if possible"},
    )
    seed: int = field(default=0, metadata={"help": "random seed of the choice among true sentences"})
    preview: str | None = field(
        default=None,
        metadata={"help": f"PNG file for a grid of samples; by default {PREVIEW} in the output folder"},
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "skip and list images with an invalid annotation; default: stop at the first one"},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace the files of an earlier run in --output, and the file of --preview"}
    )
    allow_outside: bool = field(
        default=False,
        metadata={"help": "also copy images that are not in the image folder (.., absolute names, links)"},
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("--output: expected a folder, got an empty name; pass a name.")
        if not (math.isfinite(self.min_area) and 0 <= self.min_area < 1):
            raise ValueError(
                f"--min_area: expected a share of the image from 0 to below 1, got {self.min_area:g}; change it."
            )
        for name, lowest in {"max_expressions_per_object": 1, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name}: expected {lowest} or more, got {getattr(self, name)}; change it.")
        check_splits(self.splits)


def describe(options: DescribeArguments, source: DataSource) -> None:
    """Run `detris data describe`: write the dataset, its preview, and print counts."""
    from ...data.readers.folder import load_folder
    from ...data.tools.describe import describe_dataset

    if options.preview is not None:  # fail early
        check_output_file(options.preview, options.overwrite, dataset_files(source), "--preview")
        check_preview()
        fix = f"omit --preview to write {PREVIEW} there, or choose another folder"
        check_not_inside(options.preview, options.output, "--preview", fix)
    bad_rows = BadRows() if options.skip_bad_rows else None
    preview = options.preview
    if preview is None and find_spec("matplotlib") is not None:
        preview = os.path.join(options.output, PREVIEW)

    def write_grid(folder: Path, counts: Mapping[str, DescribedSplit]) -> None:
        rows = [load_folder(folder, split) for split in counts]
        write_preview(rows, options.preview or str(folder / PREVIEW), options.seed)

    with stop_on_sigterm():
        counts = describe_dataset(
            source,
            options.output,
            options.splits,
            min_area=options.min_area,
            max_expressions=options.max_expressions_per_object,
            seed=options.seed,
            bad_rows=bad_rows,
            overwrite=options.overwrite,
            allow_outside=options.allow_outside,
            finish=write_grid if preview else None,
        )
    messages = [f"wrote {options.output}", "", format_counts(counts)]
    if bad_rows:
        messages.append(list_bad_rows(bad_rows))
    if preview:
        messages += ["", f"wrote {preview}"]
    print("\n".join(messages))


def format_counts(counts: Mapping[str, DescribedSplit]) -> str:
    """Format the counts of each split as a table of one column per split."""
    from ...data.tools.describe.expressions import KINDS

    rows = {"images": "images", "objects": "objects", "sentences": "sentences"}
    omitted = {
        "small": "too small",
        "ambiguous": "ambiguous",
        "crowds": "crowds or masks in many parts",
        "empty_images": "images without annotations",
        "undescribed_images": "images without a described object",
    }
    table = [("", *counts)]
    table += [(title, *(f"{getattr(count, name):,}" for count in counts.values())) for name, title in rows.items()]
    table += [(f"  {kind}", *(f"{count.kinds[kind]:,}" for count in counts.values())) for kind in KINDS]
    table.append(("without a sentence", *("" for _ in counts)))
    table += [
        (f"  {title}", *(f"{getattr(count, name):,}" for count in counts.values())) for name, title in omitted.items()
    ]
    return "\n".join(format_table(table))
