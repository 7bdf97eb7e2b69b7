"""Results of `check_data`, and their JSON form for `detris data check --report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..sources import DataSource

if TYPE_CHECKING:
    import datasets


@dataclass
class Finding:
    """An error or a notice about a dataset.

    Kinds of errors: those in `BAD_KINDS`, `shared_image` (an image is in two splits that must not share images),
    `split_unreadable` (no row of the split can be read) and `split_empty` (it has no rows).

    Kinds of notices: `split_missing` (training needs it by default), `count_differs`, `sentence_too_long`,
    `same_image` (equal images under different names), `mask_of_several`, `mask_on_white`, `file_outside` (a file is
    not in the dataset's folder), `leak`, `shared_image` if splits share images by design, `bad_mask` (flagged in
    `detris data review`), and those of exports: `no_sentences` (no object has one), `no_sentence` (some objects have
    none), `no_mask`, `shape_without_area`, `label_ignored`, `several_annotations`, `encoding`.
    """

    kind: str
    split: str
    message: str
    rows: int = 1  # number of affected rows


@dataclass
class SplitReport:
    """Counts of one split (of the rows that its reader accepted), and its errors and notices."""

    split: str
    images: int = 0
    references: int = 0
    sentences: int = 0
    objects: int = 0  # without a sentence, if no object of the split has one
    no_target: int = 0
    published: int | None = None  # number of references, if the dataset is a published one
    errors: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)
    rows: datasets.Dataset | None = None
    # Maps an image's identity (digest of the file's bytes, or path) to its name and first row.
    identities: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def error_counts(self) -> dict[str, int]:
        """Number of rows with an error, keyed by kind."""
        return _counted(self.errors)

    def as_json(self) -> dict[str, Any]:
        """Return the counts of the split; see `as_json` of the module."""
        counts = ("images", "references", "sentences", "objects", "no_target", "published")
        content = {name: getattr(self, name) for name in counts}
        return {**content, "bad": self.error_counts, "notices": _counted(self.notices)}


def as_json(
    source: DataSource, reports: Sequence[SplitReport], checksums: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the complete result of a check as JSON-compatible data.

    Returns:
        {"dataset": str, "data_root": str, "split_by": str,
         "format": str,                                the format or tool that was detected
         "sha256": {file: digest},                     of the files with the annotations
         "ok": bool,                                   no errors; notices are allowed
         "splits": {split: {"images": int, "references": int, "sentences": int, "objects": int,
                            "no_target": int,
                            "published": int | null,   references, if the dataset is a published one
                            "bad": {kind: rows}, "notices": {kind: rows}}},
         "errors": [{"kind": str, "split": str, "message": str, "rows": int}],     all errors
         "notices": [...]}                                                         all notices
    """
    return {
        "dataset": source.dataset,
        "data_root": source.data_root,
        "split_by": source.split_by,
        "format": source.reader().tool(source),
        "sha256": dict(checksums or {}),
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
