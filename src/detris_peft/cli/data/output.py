"""What the `detris data` commands share: checks of options, output files, and lists of findings."""

from __future__ import annotations

import glob
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...atomic import atomic_write_file
from ...data.errors import BadRows
from ...data.sources import DataSource
from ...data.tools.report import Finding

_SHOWN = 3  # maximum number of findings listed per kind and split


def check_splits(splits: Sequence[str] | None) -> None:
    """Raise a ValueError if a name of `--splits` is empty."""
    if splits is not None and not all(splits):
        raise ValueError("--splits: expected names of splits, got none or an empty one; omit --splits for all.")


def dataset_files(source: DataSource) -> tuple[Path, ...]:
    """Return the files of a local dataset that are not images, which an output must not replace."""
    from ...data.readers import candidate_paths

    found: list[Path] = []
    for path in candidate_paths(source):
        # "{split}" in the name of a COCO file is replaced by the names of the splits.
        for match in map(Path, glob.glob(glob.escape(str(path)).replace("{split}", "*"))):
            found += (
                [match]
                if match.is_file()
                else [file for file in (*match.iterdir(), *match.glob("*/*")) if file.is_file()]
            )
    return tuple(found)


@contextmanager
def write_output(file: str) -> Iterator[Path]:
    """Yield a temporary path that replaces an output file on success."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_file(Path(file)) as temporary:
        yield temporary


def write_report(file: str, content: Any) -> None:
    """Write the JSON file of `--report`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with write_output(file) as temporary:  # names of files may hold bytes that are not UTF-8
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def check_not_inside(file: str, output: str, option: str, fix: str) -> None:
    """Raise a ValueError if a file is in the folder of `--output`, which the command writes as a whole."""
    if Path(os.path.realpath(file)).is_relative_to(os.path.realpath(output)):
        raise ValueError(f"{option} {file}: expected a file that is not in --output, got one in {output}; {fix}.")


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Exit on SIGTERM as on an error, so that partial output is removed."""
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def list_bad_rows(bad_rows: BadRows) -> str:
    """Return the number of skipped rows, and the first errors of each kind."""
    # A line that is not valid JSON has no split, so the reader of each split reports it.
    findings = [*{str(error): Finding(error.kind, "", str(error)) for error in bad_rows}.values()]
    number = f"{len(findings):,} invalid {'row' if len(findings) == 1 else 'rows'}"
    return "\n".join(list_findings(f"skipped {number}", findings))


def list_findings(title: str, findings: Sequence[Finding]) -> list[str]:
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
