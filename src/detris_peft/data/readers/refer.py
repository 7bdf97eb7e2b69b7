"""The layout of the REFER API (Kazemzadeh et al., 2014; Yu et al., 2016): RefCOCO, RefCOCO+, G-Ref, RefCLEF.

<root>/<dataset>/refs(<split_by>).p     who is referred to, in which words
<root>/<dataset>/instances.json         COCO annotations: images and segmentations
<root>/images/train2014/*.jpg           the images (RefCLEF: images/saiapr_tc-12)
"""

import os
from collections.abc import Mapping
from typing import Any

import datasets

from ..errors import BadRows
from .refer_fields import field
from .refer_files import ReferFiles

# References by dataset, split_by and split, as published.
PUBLISHED_REFERENCES: dict[tuple[str, str], dict[str, int]] = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
}

# Whose splits share images, and why.
SHARED_BY_DESIGN = {("refcocog", "google"): "it was split by objects, not by images"}


def load_refer(
    root: str | os.PathLike[str],
    dataset: str,
    split_by: str,
    split: str,
    *,
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """One split of a dataset in REFER's layout, one row a reference; the columns are `FEATURES`.

    Args:
        root: the folder that holds the datasets and the images.
        dataset: its folder's name, such as "refcoco", "refcoco+", "refcocog", "refclef" or "refshapes".
        split_by: who made the splits: "unc", "umd", "google", ...
        split: "train", "val", "testA", ...: exactly as in the file.
        image_folder: where the images are, below `root`; by default images/train2014, for "refclef"
            images/saiapr_tc-12.
        bad_rows: collects what cannot be trained on and leaves it out; None stops at the first such row.

    Returns:
        An in-memory `datasets.Dataset`; no cache is written. Images stay files until a row is read.

    Raises:
        FileNotFoundError: a folder or file is missing; without `bad_rows` also a image (`MissingImageError`).
        ValueError: a file cannot be read or the split is unknown; without `bad_rows` also one of its references or
            annotations is faulty (`BadRowError`): the first is named.
        pickle.UnpicklingError: the references' pickle asks for more than plain containers.
    """
    return open_refer(root, dataset, split_by, image_folder).rows(split, bad_rows, one_target)


def open_refer(
    root: str | os.PathLike[str], dataset: str, split_by: str, image_folder: str | None = None
) -> ReferFiles:
    """The files of a dataset, for whoever wants several splits and to read them once; see `load_refer`."""
    return ReferFiles(root, dataset, [f"refs({split_by}).p"], image_folder)


def one_target(reference: Mapping[str, Any], where: str) -> list[int]:
    """A reference's only annotation."""
    return [field(reference, "ann_id", int, where)]
