"""One split of COCO JSON: a file, or the annotations of a file that are in the split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..errors import BadRowError, BadRows, NoSentencesError, join_names
from .coco_file import CocoFile
from .labels.files import ImageFinder
from .labels.objects import LabeledImage
from .labels.reader import label_rows


@dataclass
class CocoSplit:
    """One split of COCO JSON.

    Args:
        content: the file.
        dataset: name of the dataset.
        split: the split; None for all annotations of the file.
        default_split: split of images and annotations that name none.
        folder: folder of the images.
        root: folder of the dataset or of its images, see `LabeledImage`.
        base: folder of a dataset of one file per split. Ids of images may collide across files, so that they are
            derived from the names of the images below this folder. None for a dataset of one file.
        finder: finds images that are not in `folder`; None does not search for them.
    """

    content: CocoFile
    dataset: str
    split: str | None
    default_split: str
    folder: Path
    root: Path
    base: Path | None = None
    finder: ImageFinder | None = None

    def rows(self, bad_rows: BadRows | None, location: str) -> datasets.Dataset:
        """Return the rows of the annotations with sentences.

        Args:
            bad_rows: collects invalid annotations; None raises the first.
            location: the dataset as users name it, for the message about missing sentences.
        """
        annotations = self.content.annotations
        referred = [annotation for annotation in annotations if self.content.has_text(annotation)]
        if not referred:
            raise NoSentencesError(
                f"{self.content.path}: expected annotations with 'sentences', got {len(annotations):,} without; add "
                "them next to 'segmentation', or make some with `detris data describe --dataset "
                f"{location} --output DIR`"
            )
        self._require_split(referred)
        silent = len(annotations) - len(referred)
        return label_rows(self.images(self.content.has_text), self.split, self.dataset, bad_rows, "", silent)

    def object_rows(self, bad_rows: BadRows | None) -> datasets.Dataset:
        """Return one row per annotation; see `LabelReader.load_objects`."""
        return label_rows(self.images(), self.split, self.dataset, bad_rows, None)

    def images(self, select: Callable[[dict], bool] | None = None) -> Iterator[LabeledImage | BadRowError]:
        """Yield the images with the selected annotations, by default all; see `LabelReader.images`."""
        self._require_split(self.content.annotations)
        return self.content.labeled_images(
            self.folder, self.root, self.base, self.default_split, select=select, finder=self.finder
        )

    def _require_split(self, annotations: Iterable[dict]) -> None:
        """Raise a ValueError if none of the annotations is in the split."""
        found = sorted({self.content.split_of(annotation, self.default_split) for annotation in annotations})
        if self.split is not None and self.split != self.default_split and self.split not in found:
            raise ValueError(
                f"{self.content.path}: no split '{self.split}', expected one of {join_names(found)}; name the file of "
                "each split as '{split}.json', add a field 'split' to the images, or make splits with `detris data "
                "split`"
            )
