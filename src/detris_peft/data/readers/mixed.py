"""Reader for the mixed training set: RefCOCO, RefCOCO+ and G-Ref (umd), without images of any val or test split.

The three datasets share COCO's images but not their splits: a val or test image of one may be a training image of
another.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import datasets

from ..errors import BadRows, join_names
from .refer import REFER
from .refer_files import ReferFiles, annotation_files, normalized, reference_splits
from .registry import DatasetReader, Source

MIXED_SETS = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))

logger = logging.getLogger(__name__)


class MixedReader(DatasetReader):
    """Reads three datasets in the data root as one, under the name "mixed"."""

    name = "mixed"
    title = "RefCOCO, RefCOCO+ and G-Ref mixed"
    accepts = "mixed"
    options = ("leak=drop", "image_folder")

    def detect(self, source: Source) -> bool:
        return source.dataset == "mixed"

    def splits(self, source: Source) -> Iterable[str]:
        return {
            split
            for dataset, split_by in MIXED_SETS
            for split in reference_splits(source.data_root, dataset, split_by, REFER)
        }

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return [
            file
            for dataset, split_by in MIXED_SETS
            for file in annotation_files(source.data_root, dataset, split_by, REFER)
        ]

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return load_mixed(
            source.data_root, split, leak=source.leak or "drop", image_folder=source.image_folder, bad_rows=bad_rows
        )


def load_mixed(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    leak: str = "drop",
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load one split of the three datasets, concatenated; the column `dataset` names the source of each row.

    Args:
        root: the folder that holds refcoco, refcoco+, refcocog and the images.
        split: "train", or any other split that at least one of the datasets has.
        leak: how to handle training images that are in a val or test split of any of the three: "drop" excludes them,
            "keep" trains on them, as the released mixed model was trained.
        image_folder, bad_rows: see `load_refer`.

    Returns:
        As for `load_refer`. For "train", `info.description` reports in one line how many images and references leak.

    Raises:
        FileNotFoundError: one of the datasets is missing.
        ValueError: `leak` is invalid, no dataset has the split, no training image remains, or as for `load_refer`.
    """
    if leak not in ("drop", "keep"):
        raise ValueError(f"expected leak='drop' or leak='keep', got leak={leak!r}; pass one of them")
    _require_all(Path(root))
    parts, held_out, found = [], set(), []
    for dataset, split_by in MIXED_SETS:  # one at a time: the annotations of each take hundreds of MiB
        files = ReferFiles(root, dataset, split_by, REFER, image_folder)
        held_out |= files.held_out_images()
        found.append(f"{dataset} has {join_names(files.splits())}")
        if split in files.splits():
            parts.append(files.rows(split, bad_rows))
    if not parts:
        raise ValueError(f"{root}: mixed has no split '{split}', pass one of these: {'; '.join(found)}")
    rows = datasets.concatenate_datasets(parts)
    return _handle_leaks(rows, held_out, leak) if split == "train" else rows


def _handle_leaks(rows: datasets.Dataset, held_out: set[str], leak: str) -> datasets.Dataset:
    """Report training images that are held out by any of the datasets, and drop them if `leak` is "drop"."""
    names = [normalized(name) for name in rows["file_name"][:]]
    clean = [index for index, name in enumerate(names) if name not in held_out]
    images = set(names)
    message = (
        f"mixed train: {len(images & held_out):,} of {len(images):,} images, with "
        f"{len(names) - len(clean):,} of {len(names):,} references, are in a val or test split of "
        f"{join_names(dataset for dataset, _ in MIXED_SETS)} and "
        + ("are excluded (leak=drop)" if leak == "drop" else "are trained on (leak=keep)")
    )
    logger.info(message)
    if names and not clean and leak == "drop":
        raise ValueError(f"{message}: no training image remains; pass leak='keep' to train on all of them")
    if leak == "drop":
        rows = rows.select(clean)
    rows.info.description = message
    return rows


def _require_all(root: Path) -> None:
    names = [f"{dataset}/refs({split_by}).p" for dataset, split_by in MIXED_SETS]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root}: mixed requires {join_names(names)}; add the missing {join_names(missing)}")
