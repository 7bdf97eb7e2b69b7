"""The layout of gRefCOCO (Liu et al., 2023, https://arxiv.org/abs/2306.00968): several targets, or none.

As REFER's, with `grefs(<split_by>).json` (or .p), whose references list their annotations:
[12, 15] are two targets, [-1] or [] is none.
"""

import os
from collections.abc import Mapping
from typing import Any

import datasets

from ..errors import BadRowError, BadRows
from .refer_fields import field, whole
from .refer_files import ReferFiles


def load_grefer(
    root: str | os.PathLike[str],
    split: str,
    *,
    dataset: str = "grefcoco",
    split_by: str = "unc",
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """One split in gRefCOCO's layout, one row a reference; the columns are `FEATURES`.

    The mask is the union of the targets; where there is none it is empty and `no_target` is true.

    Args and errors: see `load_refer`.
    """
    names = [f"grefs({split_by}).json", f"grefs({split_by}).p"]
    files = ReferFiles(root, dataset, names, image_folder)
    # Its sentences are partly RefCOCO's: only the references' ids are relied on.
    return files.rows(split, bad_rows, several_targets, unique_sentences=False)


def several_targets(reference: Mapping[str, Any], where: str) -> list[int]:
    """A reference's annotations, each once; none for [-1], [], -1 and, where the field is missing, `no_target`.

    Raises:
        BadRowError: `ann_id` is no list of ids, or disagrees with `no_target`.
    """
    no_target = reference.get("no_target")
    if no_target is not None and no_target not in (True, False):
        field(reference, "no_target", bool, where)
    value = reference.get("ann_id", [] if no_target else None)
    ids = [whole(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if None in ids or (-1 in ids and len(ids) > 1):
        found = "is missing" if value is None else f"is {value!r:.60}"
        raise BadRowError(f"{where}: 'ann_id' {found}: it must list annotations, or be [-1] where there is no target")
    targets = [ann_id for ann_id in dict.fromkeys(ids) if ann_id is not None and ann_id != -1]
    if no_target is not None and bool(no_target) != (not targets):
        raise BadRowError(f"{where}: 'no_target' is {no_target}, but 'ann_id' is {value!r:.60}: mend one")
    return targets
