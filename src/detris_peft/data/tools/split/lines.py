"""Lines of the output's metadata.jsonl: ids, sentences, and the fields of the source that the reader does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import BadRowError, BadRows
from ...fields import read_id
from ...readers.folder import BAD_MASK, FolderReader, metadata_files, metadata_lines
from ...readers.registry import dataset_folder, find_reader
from ...sources import DataSource

_READ_FIELDS = frozenset(
    {
        *("file_name", "sentence", "sentences", "mask", "mask_file_name", "no_target", "split", BAD_MASK),
        *("ref_id", "ann_id", "image_id", "category_id"),
    }
)


def extra_fields(source: DataSource) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the fields that `load_folder` does not read, such as `category` and `license`, by (split, ref_id).

    Empty if the dataset is not a folder with metadata.jsonl.
    """
    if not isinstance(find_reader(source), FolderReader):
        return {}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    invalid = BadRows()  # reported when the rows were read
    for file, default in metadata_files(dataset_folder(source)):
        for number, line in metadata_lines(file, invalid):
            extra = {name: value for name, value in line.items() if name not in _READ_FIELDS}
            if not extra:
                continue
            try:
                key = line.get("split") or default, read_id(line.get("ref_id"), number, "")
            except BadRowError:
                continue
            found.setdefault(key, extra)
    return found


class Ids:
    """The ids of the output: those of the source, unless two references or two images share one.

    Args:
        rows: pairs of the image's number and the row, for all rows.
    """

    def __init__(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        references: dict[int, int] = {}
        images: dict[int, int] = {}
        self.renumbered = False
        self._ann_ids: dict[tuple[Any, ...], int] = {}
        self._next = 0
        for number, (image, row) in enumerate(rows):
            self.renumbered |= references.setdefault(row["ref_id"], number) != number
            self.renumbered |= images.setdefault(row["image_id"], image) != image

    def of(self, image: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ids of a row as fields of its line."""
        ann_ids: Sequence[int] = row["ann_ids"]
        if not self.renumbered:
            ids: dict[str, Any] = {"ref_id": row["ref_id"], "image_id": row["image_id"]}
        else:
            self._next += 1
            ids = {"ref_id": self._next, "image_id": image + 1}
            keys = [(row["dataset"], row["split"], image, ann_id) for ann_id in ann_ids]
            ann_ids = [self._ann_ids.setdefault(key, len(self._ann_ids) + 1) for key in keys]
        if ann_ids:
            ids["ann_id"] = ann_ids[0]
        if len(ann_ids) > 1:
            ids["ann_ids"] = list(ann_ids)  # load_folder reads the first only; the mask is their union
        if row["category_id"] != -1:
            ids["category_id"] = row["category_id"]
        if self.renumbered:
            ids |= {"source_split": row["split"], "source_ref_id": row["ref_id"]}
        return ids
