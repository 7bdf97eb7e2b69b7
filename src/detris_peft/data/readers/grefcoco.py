"""Reader for gRefCOCO (Liu et al., 2023, https://arxiv.org/abs/2306.00968): several targets, one, or none.

The format is REFER's, except that references are in `grefs(<split_by>).json` (or .p), and each has a list of
annotation ids: [12, 15] for two targets, [-1] or [] for no target.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRowError, BadRows
from .refer_fields import as_int, field
from .refer_files import ReferenceFormat, ReferFiles, annotation_files, reference_splits, root_and_name
from .registry import DatasetReader, Source, dataset_path


def several_targets(reference: Mapping[str, Any], where: str) -> list[int]:
    """Return the unique annotation ids of a reference; none for [-1], [], -1, or `no_target` without `ann_id`.

    Raises:
        BadRowError: `ann_id` is not a list of ids, or contradicts `no_target`.
    """
    no_target = reference.get("no_target")
    if no_target is not None and no_target not in (True, False):
        field(reference, "no_target", bool, where)
    value = reference.get("ann_id", [] if no_target else None)
    ids = [as_int(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if None in ids or (-1 in ids and len(ids) > 1):
        found = "nothing" if value is None else f"{value!r:.60}"
        raise BadRowError(
            f"{where}: expected annotation ids in 'ann_id', or [-1] for no target, got {found}; fix the list"
        )
    targets = [ann_id for ann_id in dict.fromkeys(ids) if ann_id is not None and ann_id != -1]
    if no_target is not None and bool(no_target) != (not targets):
        raise BadRowError(
            f"{where}: expected 'ann_id' to agree with 'no_target' {no_target}, got {value!r:.60}; fix one of the two"
        )
    return targets


# Some sentences are RefCOCO's and have the same ids, so only reference ids are unique.
GREFER = ReferenceFormat("grefcoco", ("grefs({}).json", "grefs({}).p"), several_targets, unique_sentences=False)


class GrefCocoReader(DatasetReader):
    """Reads folders with grefs(<split_by>).json and instances.json."""

    name = "grefcoco"
    title = "gRefCOCO"
    accepts = "a folder with grefs(*).json and instances.json"
    options = ("image_folder",)

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and any(path.glob("grefs(*).*"))

    def splits(self, source: Source) -> Iterable[str]:
        return reference_splits(*root_and_name(source), source.split_by, GREFER)

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return annotation_files(*root_and_name(source), source.split_by, GREFER)

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        root, name = root_and_name(source)
        return load_grefer(
            root,
            split,
            dataset=name,
            split_by=source.split_by,
            image_folder=source.image_folder,
            bad_rows=bad_rows,
        )


def load_grefer(
    root: str | os.PathLike[str],
    split: str,
    *,
    dataset: str = "grefcoco",
    split_by: str = "unc",
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load one split in the gRefCOCO format, one row per reference, with the columns `FEATURES`.

    The mask is the union of the targets. Without targets the mask has no foreground and `no_target` is true.

    Args and errors: see `load_refer`.
    """
    return ReferFiles(root, dataset, split_by, GREFER, image_folder).rows(split, bad_rows)
