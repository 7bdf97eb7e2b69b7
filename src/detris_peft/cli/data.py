"""Check a dataset before training on it, or convert it to parquet."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import CLIPTokenizer

from .. import DetrisProcessor
from ..atomic import atomic_write_file
from ..data import decode_mask, decode_row
from ..data.errors import BadRows
from ..data.masks import mask_area
from ..data.readers import dataset_path
from ..data.sources import DataSource
from ..data.tools.check import check_data
from ..data.tools.convert import write_parquet
from ..data.tools.report import Finding, SplitReport, as_json
from ..defaults import IMAGE_SIZE, MAX_TEXT_LENGTH
from ..errors import one_line
from ..modeling.hub import check_hub_access
from ..outputs import MARKER, check_output_file
from ..tokenization_detris import count_tokens, load_tokenizer
from ..visualization import plot_samples
from .parser import CommandParser, parse_command

_SHOWN = 3  # maximum number of findings listed per kind and split
_PREVIEW = 12  # samples in the preview image
_COMMANDS = {
    "check": "count rows, decode every image, and list errors; exit code 1 if there are errors",
    "convert": "write parquet shards with embedded images and masks, ready for the Hub",
}


@dataclass
class CheckArguments:
    """Options of `detris data check`."""

    splits: list[str] | None = field(default=None, metadata={"help": "splits to process; by default all"})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "tokenizer (folder or Hub name) to count tokens with; by default words are counted"},
    )
    max_text_length: int = field(default=MAX_TEXT_LENGTH, metadata={"help": "tokens that the text encoder reads"})
    image_size: int = field(
        default=IMAGE_SIZE,
        metadata={"help": "model input size; masks that vanish at this size are reported as errors"},
    )
    report: str | None = field(default=None, metadata={"help": "JSON file for counts, errors and notices"})
    preview: str | None = field(default=None, metadata={"help": "PNG file for a grid of samples with their masks"})
    no_images: bool = field(default=False, metadata={"help": "skip image decoding (faster, fewer checks)"})
    num_workers: int = field(default=min(os.cpu_count() or 1, 8), metadata={"help": "image decoding threads"})
    seed: int = field(default=0, metadata={"help": "random seed of the samples in the preview"})
    overwrite: bool = field(default=False, metadata={"help": "replace existing files of --report and --preview"})

    def __post_init__(self) -> None:
        limits = {"max_text_length": 1, "image_size": 1, "num_workers": 0, "seed": 0}
        for name, lowest in limits.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name}: expected {lowest} or more, got {getattr(self, name)}; change it.")
        _check_splits(self.splits)


@dataclass
class ConvertArguments:
    """Options of `detris data convert`."""

    output: str = field(metadata={"help": "output folder"})
    splits: list[str] | None = field(default=None, metadata={"help": "splits to process; by default all"})
    max_shard_size: str = field(default="500MB", metadata={"help": "maximum size of a parquet file, in KB, MB or GB"})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "skip and list invalid rows; default: stop at the first one"}
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "upload the output as this dataset: user/name"})
    private: bool = field(default=False, metadata={"help": "with --push_to_hub: create the dataset as private"})
    overwrite: bool = field(default=False, metadata={"help": "replace the files of an earlier conversion in --output"})
    allow_outside: bool = field(
        default=False,
        metadata={
            "help": "also copy images and masks that are not in the dataset's folder (.., absolute names, links)"
        },
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("--output: expected a folder, got an empty name; pass a name.")
        if self.private and not self.push_to_hub:
            raise ValueError("--private: expected --push_to_hub as well, got none; add it, or omit --private.")
        _check_splits(self.splits)


def _check_splits(splits: Sequence[str] | None) -> None:
    if splits is not None and not all(splits):
        raise ValueError("--splits: expected names of splits, got none or an empty one; omit --splits for all.")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris data` with these arguments; by default with those of the command line."""
    arguments, prog = [*(sys.argv[1:] if argv is None else argv)], prog or "detris data"
    command = parse_command(arguments, prog, _COMMANDS)
    classes: Any = (CheckArguments if command == "check" else ConvertArguments, DataSource)
    parser = CommandParser(classes, prog=f"{prog} {command}", description=_COMMANDS[command])
    options, source = parser.parse_args_into_dataclasses(arguments[1:])
    datasets.disable_progress_bars()
    (check if command == "check" else convert)(options, source)


def check(options: CheckArguments, source: DataSource) -> None:
    """Run `detris data check`: print a table and the findings; exit with code 1 if there are errors."""
    outputs = [(name, file) for name in ("report", "preview") if (file := getattr(options, name)) is not None]
    for name, file in outputs:  # fail early
        check_output_file(file, options.overwrite, _inputs(source), f"--{name}")
    if len({os.path.realpath(file) for _, file in outputs}) < len(outputs):
        raise ValueError(f"--report: expected another file than --preview, got {options.report} for both; change one.")
    if options.preview and find_spec("matplotlib") is None:
        raise ValueError("--preview: expected matplotlib, found no such package; run: pip install matplotlib.")
    reports = check_data(
        source,
        options.splits,
        count_tokens=_token_counter(options.tokenizer) if options.tokenizer else None,
        max_text_length=options.max_text_length,
        is_visible=_visibility(options.image_size),
        images=not options.no_images,
        num_workers=options.num_workers,
    )
    content = as_json(source, reports)
    messages = []
    # Written before anything is printed, which may fail.
    if options.report:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with _output(options.report) as file:  # names of files may hold bytes that are not UTF-8
            file.write_bytes(text.encode("utf-8", "backslashreplace"))
        messages.append(f"wrote {options.report}")
    if options.preview:
        samples = draw_samples(reports, _PREVIEW, options.seed)
        if samples:
            with _output(options.preview) as file:
                plot_samples(samples, file)
        messages.append(f"wrote {options.preview}" if samples else "no valid rows: wrote no preview")
    print("\n".join([format_reports(source, reports), *messages]))
    if not content["ok"]:
        raise SystemExit(1)


@contextmanager
def _output(file: str) -> Iterator[Path]:
    """Yield a temporary path that replaces an output file on success."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_file(Path(file)) as temporary:
        yield temporary


def _inputs(source: DataSource) -> tuple[Path, ...]:
    """Return the files of a local dataset that are not images, which an output must not replace."""
    path = dataset_path(source)
    if path is None or path.is_file():
        return (path,) if path else ()
    return tuple(file for file in (*path.iterdir(), *path.glob("*/*")) if file.is_file())


def convert(options: ConvertArguments, source: DataSource) -> None:
    """Run `detris data convert`: write parquet files, and upload them on request."""
    if options.push_to_hub:  # fail early
        check_hub_access(options.push_to_hub)
    bad_rows = BadRows() if options.skip_bad_rows else None
    # Clean up partial output on SIGTERM.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        counts = write_parquet(
            source,
            options.output,
            options.splits,
            max_shard_size=options.max_shard_size,
            bad_rows=bad_rows,
            overwrite=options.overwrite,
            allow_outside=options.allow_outside,
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    rows = ", ".join(f"{split} {count:,} rows" for split, count in counts.items())
    print(f"wrote {options.output}: {rows}")
    if bad_rows:
        # A line that is not valid JSON has no split, so the reader of each split reports it.
        findings = [*{str(error): Finding(error.kind, "", str(error)) for error in bad_rows}.values()]
        number = f"{len(findings):,} invalid {'row' if len(findings) == 1 else 'rows'}"
        print("\n".join(_listed(f"skipped {number}", findings)))
    if options.push_to_hub:
        _push(options.push_to_hub, options)


def format_reports(source: DataSource, reports: Sequence[SplitReport]) -> str:
    """Format the counts per split as a table, and errors and notices as the count and first examples of each kind."""
    headers = ["split", "images", "references", "published", "sentences", "no target", "errors", "notices"]
    has_published = any(report.published for report in reports)
    hidden = set() if has_published else {"published"}
    if not any(report.no_target for report in reports):
        hidden.add("no target")
    table = [headers]
    for report in reports:
        counts = (
            report.images,
            report.references,
            report.published,
            report.sentences,
            report.no_target,
            sum(report.error_counts.values()),
            len(report.notices),
        )
        table.append([report.split, *("-" if count is None else f"{count:,}" for count in counts)])
    table = [[cell for cell, header in zip(row, headers, strict=True) if header not in hidden] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{source.dataset}, split by {source.split_by}" if has_published else source.dataset, ""]
    for split, *counts in table:
        cells = (cell.rjust(width) for cell, width in zip(counts, widths[1:], strict=True))
        lines.append("  ".join([split.ljust(widths[0]), *cells]))
    errors = [finding for report in reports for finding in report.errors]
    lines += _listed("errors", errors)
    lines += _listed("notices", [finding for report in reports for finding in report.notices])
    missing = [finding.split for report in reports for finding in report.notices if finding.kind == "split_missing"]
    conclusion = "No errors found."
    if errors:
        conclusion = "Fix these errors, or pass --skip_bad_rows to skip invalid rows."
    elif missing:
        conclusion = f"No errors found in these splits, but `detris train` also needs: {', '.join(missing)}."
    return "\n".join([*lines, "", conclusion])


def draw_samples(reports: Sequence[SplitReport], count: int, seed: int) -> list[tuple[Any, Any, str, str]]:
    """Draw random valid rows, about equally many per split, as (image, mask, caption, sentence)."""
    rng = np.random.default_rng(seed)
    samples = []
    readable = [report.rows for report in reports if report.rows]
    for split_index, rows in enumerate(readable):
        rows = rows.cast_column("image", datasets.Image(decode=False))
        target = len(samples) + (count - len(samples)) // (len(readable) - split_index)
        for index in rng.permutation(len(rows))[: 20 * count].tolist():
            if len(samples) == target:
                break
            row: dict[str, Any] = rows[index]
            try:
                image, mask = decode_row(row)
            except (OSError, ValueError):  # already reported
                continue
            caption = f"{row['split']}, reference {row['ref_id']}{', no target' * row['no_target']}"
            samples.append((image, mask, caption, rng.choice(row["sentences"])))
    return samples


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    """Return lines with the number of rows and the first messages per split and kind."""
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
    return partial(count_tokens, load_tokenizer(name))


def _visibility(image_size: int) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that tests whether a mask is visible after resizing, which may drop small regions."""
    processor = DetrisProcessor(CLIPTokenizer(), image_size=image_size)

    def is_visible(mask: Mapping[str, Any]) -> bool:
        height, width = mask["size"]
        scale = image_size / max(height, width)
        # Fast path: down to about half the size no pixel is dropped. At smaller scales, an invisible mask is at most a
        # line across the canvas.
        if scale > 0.6 or mask_area(mask) * scale**2 > image_size:
            return True
        return processor.is_visible(decode_mask(mask))

    return is_visible


def _push(name: str, options: ConvertArguments) -> None:
    """Upload the output folder; delete remote shards of earlier conversions."""
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=options.private, exist_ok=True)
        # Large uploads are split into several commits; running an interrupted upload again resumes it.
        url = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=options.output,
            delete_patterns="data/*.parquet",
            ignore_patterns=MARKER,
            commit_message="Written by detris data convert",
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = one_line(error, first_line=True)
        raise OSError(
            f"{name}: the upload failed ({reason}); {options.output} is complete, resume with "
            f"`hf upload {name} {options.output} --repo-type dataset`"
        ) from None
    print(f"uploaded {name}: {url}")
