"""What `check_data` finds, and the JSON that `detris data check --report` writes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets

from ..sources import DataSource


@dataclass
class Finding:
    """Something wrong, or worth knowing.

    As errors: each of `BAD_KINDS`, `shared_image` (a image stands in two splits that must not share any) and
    `split_unreadable` (none of its rows can be had). As notices: `count_differs`, `sentence_too_long`,
    `same_image` (twice under two names), `leak` and `shared_image` where it is by design.
    """

    kind: str
    split: str
    message: str
    rows: int = 1  # how many rows it concerns


@dataclass
class SplitReport:
    """One split: its counts (of the rows that its reader took) and what was found."""

    split: str
    images: int = 0
    references: int = 0
    sentences: int = 0
    no_target: int = 0
    published: int | None = None  # references
    errors: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)
    rows: datasets.Dataset | None = None
    # What tells images apart (a digest of the file's bytes, or its path) to name and first row.
    identities: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def bad(self) -> dict[str, int]:
        """Rows with an error, by kind."""
        return _counted(self.errors)

    def as_json(self) -> dict[str, Any]:
        counts = ("images", "references", "sentences", "no_target", "published")
        return {**{name: getattr(self, name) for name in counts}, "bad": self.bad, "notices": _counted(self.notices)}


def as_json(source: DataSource, reports: Sequence[SplitReport]) -> dict[str, Any]:
    """The whole result.

    Returns:
        {"dataset": str, "data_root": str, "split_by": str,
         "ok": bool,                                   no error; notices do not count
         "splits": {split: {"images": int, "references": int, "sentences": int, "no_target": int,
                            "published": int | null,   references, where the set is a published one
                            "bad": {kind: rows}, "notices": {kind: rows}}},
         "errors": [{"kind": str, "split": str, "message": str, "rows": int}],     all of them
         "notices": [...]}                                                         likewise
    """
    return {
        "dataset": source.dataset,
        "data_root": source.data_root,
        "split_by": source.split_by,
        "ok": not any(report.errors for report in reports),
        "splits": {report.split: report.as_json() for report in reports},
        "errors": [asdict(finding) for report in reports for finding in report.errors],
        "notices": [asdict(finding) for report in reports for finding in report.notices],
    }


def _counted(findings: Iterable[Finding]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.kind] += finding.rows
    return dict(counts)
