"""RefCOCO, RefCOCO+ and G-Ref (umd) as one training set, without the images that any of them tests on.

The three share COCO's images but not their splits: each one's val and test stand in another's train.
"""

import logging
import os
from pathlib import Path

import datasets

from ..errors import BadRows
from .refer import one_target, open_refer
from .refer_files import listed, normalized

MIXED_SETS = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))

logger = logging.getLogger(__name__)


def load_mixed(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    leak: str = "drop",
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """The three sets' rows of one split, one set after the other; `dataset` says which a row comes from.

    Args:
        root: the folder that holds refcoco, refcoco+, refcocog and the images.
        split: "train", or another that at least one of the sets has.
        leak: of training images that stand in a val or test split of any of the three: "drop" leaves them out,
            "keep" trains on them, as the released mixed model was trained.
        image_folder, bad_rows: see `load_refer`.

    Returns:
        As `load_refer`. Of "train", `info.description` says in one line how many images and references leak.

    Raises:
        FileNotFoundError: one of the sets is missing.
        ValueError: `leak` is neither; none of the sets has the split; no image is left; and see `load_refer`.
    """
    if leak not in ("drop", "keep"):
        raise ValueError(f"leak={leak!r} is not known: use 'drop' or 'keep'")
    _require_all(Path(root))
    parts, held_out, found = [], set(), []
    for dataset, split_by in MIXED_SETS:  # one after the other: each set's annotations take hundreds of MiB
        files = open_refer(root, dataset, split_by, image_folder)
        held_out |= files.image_names(_is_held_out)
        found.append(f"{dataset} has {listed(files.splits())}")
        if split in files.splits():
            parts.append(files.rows(split, bad_rows, one_target))
    if not parts:
        raise ValueError(f"{root}: mixed has no split '{split}': {'; '.join(found)}")
    rows = datasets.concatenate_datasets(parts)
    return _without_leaks(rows, held_out, leak) if split == "train" else rows


def _without_leaks(rows: datasets.Dataset, held_out: set[str], leak: str) -> datasets.Dataset:
    names = [normalized(name) for name in rows["file_name"]]
    clean = [place for place, name in enumerate(names) if name not in held_out]
    images = set(names)
    message = (
        f"mixed train: {len(images & held_out):,} of {len(images):,} images, with "
        f"{len(names) - len(clean):,} of {len(names):,} references, stand in a val or test split of "
        f"{listed(dataset for dataset, _ in MIXED_SETS)} and "
        + ("are left out (leak=drop)" if leak == "drop" else "are trained on (leak=keep)")
    )
    logger.info(message)
    if names and not clean and leak == "drop":
        raise ValueError(f"{message}: nothing is left to train on, pass leak='keep' to train on them all the same")
    if leak == "drop":
        rows = rows.select(clean)
    rows.info.description = message
    return rows


def _is_held_out(split: str) -> bool:
    return split.startswith(("val", "test"))


def _require_all(root: Path) -> None:
    needed = [f"{dataset}/refs({split_by}).p" for dataset, split_by in MIXED_SETS]
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root}: mixed needs {listed(needed)}: missing is {listed(missing)}, put it there")
