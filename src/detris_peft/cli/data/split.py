"""`detris data split`: divide a dataset into train, val and test."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...data.errors import BadRows
from ...data.sources import DataSource
from ...data.tools.split.defaults import FRACTIONS, HIGHEST_DISTANCE, MAX_DISTANCE
from ...outputs import check_output_file
from .output import (
    check_not_inside,
    check_splits,
    dataset_files,
    format_table,
    list_bad_rows,
    stop_on_sigterm,
    write_report,
)

if TYPE_CHECKING:
    from ...data.tools.split import SplitResult

_SHOWN = 3  # groups of near-duplicates that are printed, and images of each


@dataclass
class SplitArguments:
    """Options of `detris data split`."""

    output: str = field(metadata={"help": "output folder, a dataset with metadata.jsonl"})
    splits: list[str] | None = field(
        default=None, metadata={"help": "splits of the dataset to join and divide; by default all"}
    )
    fractions: list[float] = field(
        default_factory=lambda: [*FRACTIONS],
        metadata={"help": "shares of train, val and test among the references; two numbers make no test split"},
    )
    seed: int = field(default=0, metadata={"help": "random seed of the assignment"})
    max_distance: int = field(
        default=MAX_DISTANCE,
        metadata={
            "help": "maximum number of different bits, of 64, of the perceptual hashes of near-duplicates; 0 keeps "
            "only almost equal images together"
        },
    )
    keep_folders: bool = field(
        default=False,
        metadata={"help": "also keep the images of one folder in one split, such as the frames of a video"},
    )
    report: str | None = field(default=None, metadata={"help": "JSON file for counts and groups of near-duplicates"})
    num_workers: int = field(default=min(os.cpu_count() or 1, 8), metadata={"help": "image decoding threads"})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "skip and list invalid rows; default: stop at the first one"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace the files of an earlier run in --output, and the file of --report"}
    )
    allow_outside: bool = field(
        default=False,
        metadata={
            "help": "also copy images and masks that are not in the dataset's folder (.., absolute names, links)"
        },
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("--output: expected a folder, got an empty name; pass a name.")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name}: expected 0 or more, got {getattr(self, name)}; change it.")
        if not 0 <= self.max_distance <= HIGHEST_DISTANCE:
            raise ValueError(f"--max_distance: expected 0 to {HIGHEST_DISTANCE}, got {self.max_distance}; change it.")
        check_splits(self.splits)


def split(options: SplitArguments, source: DataSource) -> None:
    """Run `detris data split`: write the dataset, and print counts and near-duplicates."""
    from ...data.tools.split import split_dataset

    if options.report is not None:  # fail early
        check_output_file(options.report, options.overwrite, dataset_files(source), "--report")
        check_not_inside(options.report, options.output, "--report", "choose another folder")
    bad_rows = BadRows() if options.skip_bad_rows else None
    with stop_on_sigterm():
        result = split_dataset(
            source,
            options.output,
            options.splits,
            fractions=options.fractions,
            seed=options.seed,
            max_distance=options.max_distance,
            keep_folders=options.keep_folders,
            bad_rows=bad_rows,
            overwrite=options.overwrite,
            allow_outside=options.allow_outside,
            num_workers=options.num_workers,
        )
    messages = [f"wrote {options.output}", "", format_result(result)]
    if bad_rows:
        messages.append(list_bad_rows(bad_rows))
    if options.report is not None:
        content = {"dataset": source.dataset, "output": options.output, **result.as_json()}
        write_report(options.report, content)
        messages += ["", f"wrote {options.report}"]
    print("\n".join(messages))


def format_result(result: SplitResult) -> str:
    """Format the counts per split as a table, followed by the first near-duplicates and the notices."""
    table: list[tuple[str, ...]] = [("split", "images", "references", "sentences", "share")]
    for name, counts in result.splits.items():
        numbers = (counts.images, counts.references, counts.sentences)
        table.append((name, *(f"{number:,}" for number in numbers), f"{result.share(name):.1%}"))
    lines = [*format_table(table), "", *_near_duplicates(result)]
    if notices := result.notices():
        lines += ["", "notices", *(f"  {notice}" for notice in notices)]
    # Names of images may hold control characters.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _near_duplicates(result: SplitResult) -> list[str]:
    if not result.groups:
        return ["no near-duplicates"]
    images = sum(len(group.images) for group in result.groups)
    groups = f"{len(result.groups):,} {'group' if len(result.groups) == 1 else 'groups'}"
    lines = [f"near-duplicates: {images:,} images in {groups}, each in one split"]
    for group in result.groups[:_SHOWN]:
        more = f" and {len(group.images) - _SHOWN:,} more" if len(group.images) > _SHOWN else ""
        lines.append(f"  {', '.join(group.images[:_SHOWN])}{more}")
    if len(result.groups) > _SHOWN:
        lines.append(f"  ... and {len(result.groups) - _SHOWN:,} more; --report lists all")
    return lines
