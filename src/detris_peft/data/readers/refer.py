"""Reader for the format of the REFER API (Kazemzadeh et al., 2014; Yu et al., 2016).

RefCOCO, RefCOCO+, G-Ref and RefCLEF are published in it:

<root>/<dataset>/refs(<split_by>).p     referring expressions
<root>/<dataset>/instances.json         COCO annotations: images and segmentations
<root>/images/train2014/*.jpg           the images (RefCLEF: images/saiapr_tc-12)
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRows
from .refer_fields import field
from .refer_files import ReferenceFormat, ReferFiles, annotation_files, reference_splits, root_and_name
from .registry import DatasetReader, Source, dataset_folder, dataset_path

# Published number of references, keyed by (dataset, split_by) and split.
PUBLISHED_REFERENCES: dict[tuple[str, str], dict[str, int]] = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
    ("rrsisd", "unc"): {"train": 12181, "val": 1740, "test": 3481},
}

# Reasons why splits share images by design, keyed by (dataset, split_by).
SHARED_BY_DESIGN = {("refcocog", "google"): "it was split by objects, not by images"}


def one_target(reference: Mapping[str, Any], where: str) -> list[int]:
    """Return the single annotation id of a reference, as a list."""
    return [field(reference, "ann_id", int, where)]


REFER = ReferenceFormat("refer", ("refs({}).p",), one_target, unique_sentences=True)


class ReferReader(DatasetReader):
    """Reads folders with refs(<split_by>).p and instances.json."""

    name = "refer"
    title = "REFER"
    accepts = "a folder with refs(*).p and instances.json"
    options = ("image_folder",)

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and (any(path.glob("refs(*).p")) or (path / "instances.json").is_file())

    def splits(self, source: Source) -> Iterable[str]:
        return reference_splits(*root_and_name(source), source.split_by, REFER)

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        root, name = root_and_name(source)
        return load_refer(root, name, source.split_by, split, image_folder=source.image_folder, bad_rows=bad_rows)

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return annotation_files(*root_and_name(source), source.split_by, REFER)

    def shared_images(self, source: Source) -> str | None:
        return SHARED_BY_DESIGN.get((Path(os.path.abspath(dataset_folder(source))).name, source.split_by))


def load_refer(
    root: str | os.PathLike[str],
    dataset: str,
    split_by: str,
    split: str,
    *,
    image_folder: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load one split of a dataset in the REFER format, one row per reference, with the columns `FEATURES`.

    Args:
        root: the folder that holds the datasets and the images.
        dataset: name of the dataset's folder, such as "refcoco", "refcoco+", "refcocog", "refclef" or "refshapes".
        split_by: split provenance: "unc", "umd", "google", ...
        split: the split's name in the file: "train", "val", "testA", ...
        image_folder: folder of the images below `root`; by default images/train2014, for "refclef"
            images/saiapr_tc-12.
        bad_rows: collects invalid rows, which are skipped; None raises the first.

    Returns:
        The rows, whose images are decoded when a row is read. Of large annotations they are memory-mapped from a
        cache, which is written if necessary; see `row_cache`.

    Raises:
        FileNotFoundError: a folder or file is missing; without `bad_rows` also an image (`MissingImageError`).
        ValueError: a file cannot be read or the split is unknown; without `bad_rows` also the first invalid reference
            or annotation (`BadRowError`).
        pickle.UnpicklingError: the references' pickle requests more than plain containers.
    """
    return ReferFiles(root, dataset, split_by, REFER, image_folder).rows(split, bad_rows)
