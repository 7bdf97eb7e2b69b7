"""Check a dataset before training on it, or convert it to parquet."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer, CLIPTokenizer, HfArgumentParser

from .. import DetrisProcessor
from ..data import decode_mask, decode_row
from ..data.errors import BadRows
from ..data.masks import mask_area
from ..data.sources import DataSource
from ..data.tools.check import check_data
from ..data.tools.convert import write_parquet
from ..data.tools.report import Finding, SplitReport, as_json
from ..modeling.hub import check_hub_access
from ..tokenization_detris import count_tokens
from ..visualization import plot_samples

_SHOWN = 3  # findings of a kind and split
_PREVIEW = 12  # samples in the image
_COMMANDS = {
    "check": "count, decode every image, and list what cannot be trained on; exit code 1 if there is any",
    "convert": "write parquet shards with images and masks inside, ready for the Hub",
}


@dataclass
class CheckArguments:
    splits: list[str] | None = field(default=None, metadata={"help": "which splits; by default all"})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "the text encoder's, folder or Hub name: counts tokens; without it words are counted"},
    )
    max_text_length: int = field(default=17, metadata={"help": "tokens that the text encoder reads"})
    image_size: int = field(
        default=448, metadata={"help": "side of the model's input: a mask of which nothing is left at it is an error"}
    )
    report: str | None = field(default=None, metadata={"help": "JSON file for counts and everything found"})
    preview: str | None = field(default=None, metadata={"help": "PNG file for a grid of samples with their masks"})
    no_images: bool = field(default=False, metadata={"help": "do not open images: quicker, and finds less"})
    num_workers: int = field(default=min(os.cpu_count() or 1, 8), metadata={"help": "threads that decode images"})
    seed: int = field(default=0, metadata={"help": "of the preview's samples"})


@dataclass
class ConvertArguments:
    output: str = field(metadata={"help": "folder to write"})
    splits: list[str] | None = field(default=None, metadata={"help": "which splits; by default all"})
    max_shard_size: str = field(default="500MB", metadata={"help": "of a parquet file, in KB, MB or GB"})
    skip_bad_rows: bool = field(default=False, metadata={"help": "leave out what cannot be trained on, and list it"})
    push_to_hub: str | None = field(default=None, metadata={"help": "upload it as this dataset: user/name"})
    private: bool = field(default=False, metadata={"help": "with --push_to_hub: a new dataset is private"})
    overwrite: bool = field(default=False, metadata={"help": "replace what an earlier conversion wrote to --output"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    arguments, prog = [*(sys.argv[1:] if argv is None else argv)], prog or "detris data"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="\n".join(f"{name:10}{does}" for name, does in _COMMANDS.items()),
        epilog=f"{prog} COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(arguments[:1]).command
    classes: Any = (CheckArguments if command == "check" else ConvertArguments, DataSource)
    parser = HfArgumentParser(classes, prog=f"{prog} {command}", description=_COMMANDS[command])
    options, source = parser.parse_args_into_dataclasses(arguments[1:])
    datasets.disable_progress_bars()
    (check if command == "check" else convert)(options, source)


def check(options: CheckArguments, source: DataSource) -> None:
    """`detris data check`: a table on the standard output; exit code 1 if there is an error."""
    for file in filter(None, (options.report, options.preview)):  # before the work, not after it
        if Path(file).is_dir():
            raise IsADirectoryError(f"{file}: is a folder: name a file")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    if options.preview and find_spec("matplotlib") is None:
        raise ValueError("--preview needs matplotlib: pip install 'detris-peft[train]'")
    reports = check_data(
        source,
        options.splits,
        count_tokens=_token_counter(options.tokenizer) if options.tokenizer else None,
        max_text_length=options.max_text_length,
        is_visible=_visibility(options.image_size),
        images=not options.no_images,
        num_workers=options.num_workers,
    )
    print(format_reports(source, reports))
    content = as_json(source, reports)
    if options.report:
        Path(options.report).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {options.report}")
    if options.preview:
        samples = draw_samples(reports, _PREVIEW, options.seed)
        if samples:
            plot_samples(samples, options.preview)
        print(f"wrote {options.preview}" if samples else "no row can be drawn: wrote no preview")
    if not content["ok"]:
        raise SystemExit(1)


def convert(options: ConvertArguments, source: DataSource) -> None:
    """`detris data convert`."""
    if options.push_to_hub:  # before the work, not after it
        check_hub_access(options.push_to_hub)
    bad_rows = BadRows() if options.skip_bad_rows else None
    # So that what stands half-written aside is removed.
    former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        counts = write_parquet(
            source,
            options.output,
            options.splits,
            max_shard_size=options.max_shard_size,
            bad_rows=bad_rows,
            overwrite=options.overwrite,
        )
    finally:
        signal.signal(signal.SIGTERM, former)
    rows = ", ".join(f"{split} {count:,} rows" for split, count in counts.items())
    print(f"wrote {options.output}: {rows}")
    if bad_rows:
        # A line that is no JSON names no split: each split's reader met it.
        findings = [*{str(error): Finding(error.kind, "", str(error)) for error in bad_rows}.values()]
        print("\n".join(_listed(f"left out {len(findings):,} bad rows", findings)))
    if options.push_to_hub:
        _push(options.push_to_hub, options)


def format_reports(source: DataSource, reports: Sequence[SplitReport]) -> str:
    """Counts by split as a table, then errors and notices: how many of each kind, and the first few."""
    heads = ["split", "images", "references", "published", "sentences", "no target", "errors", "notices"]
    published = any(report.published for report in reports)
    table = [heads]
    for report in reports:
        due = "-" if report.published is None else f"{report.published:,}"
        errors, notices = sum(report.bad.values()), len(report.notices)
        numbers = (report.no_target, errors, notices)
        counts = (f"{number:,}" for number in (report.images, report.references))
        table.append([report.split, *counts, due, f"{report.sentences:,}", *(f"{number:,}" for number in numbers)])
    hidden = set() if published else {"published"}
    if not any(report.no_target for report in reports):
        hidden.add("no target")
    table = [[cell for cell, head in zip(line, heads, strict=True) if head not in hidden] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{source.dataset}, split by {source.split_by}" if published else source.dataset, ""]
    for first, *others in table:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    errors = [finding for report in reports for finding in report.errors]
    lines += _listed("errors", errors)
    lines += _listed("notices", [finding for report in reports for finding in report.notices])
    verdict = "Nothing stands in the way of training."
    if errors:
        verdict = "Mend these, or leave bad rows out with --skip_bad_rows."
    return "\n".join([*lines, "", verdict])


def draw_samples(reports: Sequence[SplitReport], count: int, seed: int) -> list[tuple[Any, Any, str, str]]:
    """Random rows that can be decoded, about as many of each split: image, mask, caption, one of the sentences."""
    rng = np.random.default_rng(seed)
    drawn = []
    readable = [report.rows for report in reports if report.rows]
    for number, rows in enumerate(readable):
        rows = rows.cast_column("image", datasets.Image(decode=False))
        wanted = len(drawn) + (count - len(drawn)) // (len(readable) - number)
        for index in rng.permutation(len(rows))[: 20 * count].tolist():
            if len(drawn) == wanted:
                break
            row: dict[str, Any] = rows[index]
            try:
                image, mask = decode_row(row)
            except (OSError, ValueError):  # listed already
                continue
            caption = f"{row['split']}, reference {row['ref_id']}{', no target' * row['no_target']}"
            drawn.append((image, mask, caption, rng.choice(row["sentences"])))
    return drawn


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    lines = ["", title]
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.split, finding.kind].append(finding)
    for (split, kind), group in groups.items():
        rows = sum(finding.rows for finding in group)
        lines.append(f"  {' '.join(filter(None, (split, kind)))}{f': {rows:,}' if rows else ''}")
        lines += [f"    {finding.message}" for finding in group[:_SHOWN]]
        if len(group) > _SHOWN:
            lines.append(f"    ... and {len(group) - _SHOWN:,} more")
    return lines


def _token_counter(name: str) -> Callable[[Iterable[str]], list[int]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"--tokenizer {name} cannot be loaded: {_first_line(error)}") from None

    return partial(count_tokens, tokenizer)


def _visibility(image_size: int) -> Callable[[Mapping[str, Any]], bool]:
    """Whether the processor leaves anything of a mask; it samples, so that what is small may fall in between."""
    processor = DetrisProcessor(CLIPTokenizer(), image_size=image_size)

    def is_visible(mask: Mapping[str, Any]) -> bool:
        height, width = mask["size"]
        scale = image_size / max(height, width)
        # Down to about half the size every pixel counts; below, a line across the canvas is the most that is missed.
        if scale > 0.6 or mask_area(mask) * scale**2 > image_size:
            return True
        return processor.is_visible(decode_mask(mask))

    return is_visible


def _push(name: str, options: ConvertArguments) -> None:
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=options.private, exist_ok=True)
        # One commit, also of what goes: whatever breaks off leaves the old revision whole.
        url = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=options.output,
            delete_patterns="data/*.parquet",
            commit_message="Written by detris data convert",
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise OSError(
            f"{name} was not uploaded ({_first_line(error)}): {options.output} is whole, go on with "
            f"`hf upload {name} {options.output} --repo-type dataset`"
        ) from None
    print(f"uploaded {name}: {url}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
