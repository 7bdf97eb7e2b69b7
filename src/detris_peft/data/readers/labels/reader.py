"""The reader that all formats of labeling tools share: it builds rows from labeled images."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from ...errors import BadRowError, BadRows, NoSentencesError, join_names, notice, reject, short
from ...fields import read_sentences
from ...masks import unite_masks
from ...schema import make_row, to_dataset
from ..registry import DatasetReader, Source, dataset_path
from .objects import LabeledImage, LabeledObject


class LabelReader(DatasetReader):
    """Reads exports of a labeling tool; subclasses yield labeled images, which are read one at a time."""

    exclusive = True
    # Where users of the tool write sentences; completes "write sentences in ...".
    text_field: str

    @abstractmethod
    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        """Yield the images with objects in a split, with all their objects; the error of an image that is invalid.

        The order must not depend on the file system. Masks are decoded later, by `LabeledObject.mask`.

        Raises:
            FileNotFoundError, ValueError: the export is missing or cannot be read at all.
        """

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return label_rows(self._images(source, split), split, dataset_name(source), bad_rows, self._advice(source))

    def load_objects(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        """Return one row per object, whose sentence is the name of its class, to check masks that have no sentences.

        Args and errors: see `load`; there is no `NoSentencesError`.
        """
        return label_rows(self._images(source, split), split, dataset_name(source), bad_rows, None)

    def _images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        self._require_split(source, split)
        return self.images(source, split)

    def _require_split(self, source: Source, split: str) -> None:
        found = sorted(self.splits(source))
        if split not in found:
            hint = "; `detris data split` makes splits" if found == ["train"] else ""
            raise ValueError(f"{source.dataset}: no split '{split}', expected one of {join_names(found)}{hint}")

    def _advice(self, source: Source) -> str:
        return (
            f"{source.dataset}: expected sentences, got {{count:,}} objects without any; write sentences in "
            f"{self.text_field}, or make some with `detris data describe --dataset {source.dataset} --output DIR`"
        )


def dataset_name(source: Source) -> str:
    """Return the name of the dataset: that of its file or folder."""
    path = Path(os.path.abspath(dataset_path(source) or source.dataset))
    return path.stem if path.is_file() else path.name


def label_rows(
    images: Iterable[LabeledImage | BadRowError],
    split: str | None,
    dataset: str,
    bad_rows: BadRows | None,
    advice: str | None,
    silent: int = 0,
) -> datasets.Dataset:
    """Return the rows of labeled images, one per object with sentences.

    Args:
        images: images, and the errors of invalid ones.
        split: rows of other splits are left out; None keeps all.
        dataset: name of the dataset.
        bad_rows: collects invalid objects; None raises the first.
        advice: message of the error if no object has a sentence, in which "{count:,}" is replaced by the number of
            objects. None makes the name of its class the sentence of each object.
        silent: number of objects without a sentence that are not among `images`.

    Raises:
        NoSentencesError: no object of the split has a sentence.
        BadRowError: see `bad_rows`.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    seen: dict[int, str] = {}
    valid = True
    for image in images:
        size: tuple[int, int] | BadRowError | None = None
        for item in [image] if isinstance(image, BadRowError) else image.objects:
            try:
                if isinstance(item, BadRowError):
                    raise item
                assert isinstance(image, LabeledImage)
                if split is not None and (item.split or image.split) != split:
                    continue
                if item.sentences is None and advice is not None:
                    silent += 1
                    continue
                if size is None:
                    size = _size_or_error(image, item.where)
                if isinstance(size, BadRowError):  # once per object, as each of them is lost
                    raise size
                row = _row(image, item, size, split or image.split, dataset, advice is None)
                if item.ann_id in seen:
                    raise BadRowError(
                        f"{item.where}: expected a unique 'id', got one that two objects have ({seen[item.ann_id]} "
                        f"and {short(row['sentences'][0])}); renumber one of the two",
                        "duplicate_id",
                    )
            except BadRowError as error:
                valid = False
                reject(error, bad_rows)
                continue
            seen[item.ann_id] = short(row["sentences"][0])
            rows.append((item.order, row))
    if advice is not None and not rows and valid:
        raise NoSentencesError(advice.replace("{count:,}", f"{silent:,}"))  # names of datasets may have braces
    if silent:
        notice("no_sentence", f"{silent:,} of {silent + len(rows):,} objects have no sentence and are not used")
    rows.sort(key=lambda pair: pair[0])
    return to_dataset([row for _, row in rows])


def _size_or_error(image: LabeledImage, where: str) -> tuple[int, int] | BadRowError:
    try:
        return image.read_size(where)
    except BadRowError as error:
        return error


def _row(
    image: LabeledImage, item: LabeledObject, size: tuple[int, int], split: str, dataset: str, by_label: bool
) -> dict[str, Any]:
    if by_label:
        if isinstance(item.label, BadRowError):
            raise item.label
        sentences = [item.label or "object"]
    else:
        sentences = read_sentences(item.sentences, f"{item.where}: '{item.text_field}'")
    return make_row(
        image=image.source,
        sentences=sentences,
        mask=unite_masks([], *size) if item.mask is None else item.mask(*size),
        ref_id=item.ann_id,
        ann_ids=[] if item.mask is None else [item.ann_id],
        image_id=image.number,
        category_id=item.category_id,
        split=split,
        dataset=dataset,
        file_name=image.name,
    )
