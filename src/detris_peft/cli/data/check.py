"""`detris data check`: check a dataset before training on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...data.errors import BAD_KINDS
from ...data.sources import DataSource
from ...data.tools.report import SplitReport, as_json
from ...defaults import IMAGE_SIZE, MAX_TEXT_LENGTH
from ...outputs import check_output_file
from .output import check_splits, dataset_files, format_table, list_findings, write_report
from .preview import check_preview, write_preview

_SHOWN_CHECKSUMS = 8


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
        check_splits(self.splits)


def check(options: CheckArguments, source: DataSource) -> None:
    """Run `detris data check`: print a table and the findings; exit with code 1 if there are errors."""
    from ...data.tools.check import check_data, file_checksums

    outputs = [(name, file) for name in ("report", "preview") if (file := getattr(options, name)) is not None]
    for name, file in outputs:  # fail early
        check_output_file(file, options.overwrite, dataset_files(source), f"--{name}")
    if len({os.path.realpath(file) for _, file in outputs}) < len(outputs):
        raise ValueError(f"--report: expected another file than --preview, got {options.report} for both; change one.")
    if options.preview:
        check_preview()
    reports = check_data(
        source,
        options.splits,
        count_tokens=_token_counter(options.tokenizer) if options.tokenizer else None,
        max_text_length=options.max_text_length,
        is_visible=_visibility(options.image_size),
        images=not options.no_images,
        num_workers=options.num_workers,
    )
    checksums = file_checksums(source)
    content = as_json(source, reports, checksums)
    messages = []
    # Written before anything is printed, which may fail.
    if options.report:
        write_report(options.report, content)
        messages.append(f"wrote {options.report}")
    if options.preview:
        rows = [report.rows for report in reports if report.rows]
        messages.append(write_preview(rows, options.preview, options.seed))
    print("\n".join([format_reports(source, reports, checksums), *messages]))
    if not content["ok"]:
        raise SystemExit(1)


def format_reports(source: DataSource, reports: Sequence[SplitReport], checksums: Mapping[str, str]) -> str:
    """Format the counts per split as a table, and errors and notices as the count and first examples of each kind."""
    headers = ["split", "images", "references", "published", "sentences", "objects", "no target", "errors", "notices"]
    has_published = any(report.published for report in reports)
    hidden = set() if has_published else {"published"}
    if not any(report.no_target for report in reports):
        hidden.add("no target")
    if not any(report.objects for report in reports):
        hidden.add("objects")
    table = [headers]
    for report in reports:
        counts = (
            report.images,
            report.references,
            report.published,
            report.sentences,
            report.objects,
            report.no_target,
            sum(report.error_counts.values()),
            len(report.notices),
        )
        table.append([report.split, *("-" if count is None else f"{count:,}" for count in counts)])
    table = [[cell for cell, header in zip(row, headers, strict=True) if header not in hidden] for row in table]
    name = f"{source.dataset}, split by {source.split_by}" if has_published else source.dataset
    lines = [f"{name} ({source.reader().tool(source)})", "", *format_table(table), *_list_checksums(checksums)]
    errors = [finding for report in reports for finding in report.errors]
    lines += list_findings("errors", errors)
    lines += list_findings("notices", [finding for report in reports for finding in report.notices])
    missing = [finding.split for report in reports for finding in report.notices if finding.kind == "split_missing"]
    conclusion = "No errors found."
    if errors:
        conclusion = "Fix these errors."
        if any(finding.kind in BAD_KINDS for finding in errors):
            conclusion = "Fix these errors, or pass --skip_bad_rows to skip invalid rows."
    elif any(report.objects for report in reports):
        conclusion = "No errors found in the masks, but there are no sentences: make some with `detris data describe`."
    elif missing:
        conclusion = f"No errors found in these splits, but `detris train` also needs: {', '.join(missing)}."
    return "\n".join([*lines, "", conclusion])


def _list_checksums(checksums: Mapping[str, str]) -> list[str]:
    """Return lines with the checksum of each annotation file; of many files, with the checksum of their checksums."""
    if not checksums:
        return []
    if len(checksums) > _SHOWN_CHECKSUMS:
        combined = hashlib.sha256("".join(sorted(checksums.values())).encode()).hexdigest()
        return ["", "SHA-256", f"  {combined}  of the sorted checksums of {len(checksums):,} files"]
    return ["", "SHA-256", *(f"  {digest}  {file}" for file, digest in checksums.items())]


def _token_counter(name: str) -> Callable[[Iterable[str]], list[int]]:
    from ...tokenization_detris import count_tokens, load_tokenizer

    return partial(count_tokens, load_tokenizer(name))


def _visibility(image_size: int) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that tests whether a mask is visible after resizing, which may drop small regions."""
    from transformers import CLIPTokenizer

    from ...data.masks import decode_mask, mask_area
    from ...processing_detris import DetrisProcessor

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
