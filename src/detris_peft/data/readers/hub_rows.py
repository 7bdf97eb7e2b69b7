"""Convert rows of any `datasets` table into rows of `FEATURES`, and check rows that have these columns already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from huggingface_hub.constants import HF_HUB_CACHE

from ...images import is_url
from ..errors import BadRowError, BadRows, reject
from ..fields import read_box, read_flag, read_id, read_mask, read_sentences, sentence_ids, text_id, upright_size
from ..masks import unite_masks
from ..schema import FEATURES, make_row
from .column_mapping import ColumnMapping, look_up, our_split
from .paths import is_inside, named_file, note_outside


class RowConverter:
    """Converts source rows through a column mapping; `image` stays `{"path", "bytes"}`.

    Args:
        mapping: columns of the source.
        path: name or folder of the dataset.
        split: our name of the split.
        image_folder: folder of images and mask PNGs that the columns list by file name.
        bad_rows: collects invalid rows; None raises the first.
        streaming: rows are read once per epoch.
        where: prefix of error messages; by default `path` and `split`.
    """

    def __init__(
        self,
        mapping: ColumnMapping,
        path: str,
        split: str,
        image_folder: str,
        bad_rows: BadRows | None,
        streaming: bool,
        where: str | None = None,
    ) -> None:
        self.mapping, self.split, self.bad_rows = mapping, split, bad_rows
        self.where, self.image_folder = where or f"{path} {split}", image_folder
        # Streams are re-read each epoch, so seen ids are not tracked.
        self.seen: dict[int, str] | None = {} if mapping.ref_id and not streaming else None
        local = Path(os.path.abspath(path))
        self.dataset = local.name if local.is_dir() else local.stem if local.is_file() else path

    def convert_batch(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """Convert a batch of one source row; called by `datasets.Dataset.map`."""
        rows = list(self.convert({name: values[0] for name, values in batch.items()}, indices[0]))
        return {name: [row[name] for row in rows] for name in FEATURES}

    def convert(self, source: Mapping[str, Any], index: int, name: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of a source row: one, several with `rows` in the mapping, none if it is invalid.

        Args:
            source: the row.
            index: its index, from which missing ids are derived.
            name: its name in error messages, by default its index.
        """
        for number, item in enumerate(self._items(source)):
            inner = f", item {number}" if self.mapping.rows else ""
            where = f"{self.where} {name or f'row {index}'}{inner}"
            try:
                row = self._row(item, index, index * 1000 + number if inner else index, where)
                if row is not None and self.seen is not None:
                    self._require_new(row["ref_id"], where)
            except BadRowError as error:
                reject(error, self.bad_rows)
                continue
            if row is not None:
                yield row

    def _require_new(self, ref_id: int, where: str) -> None:
        assert self.seen is not None
        if ref_id in self.seen:
            raise BadRowError(
                f"{where}: expected a unique '{self.mapping.ref_id}', got {ref_id}, used by {self.seen[ref_id]}; fix "
                "it, or omit 'ref_id' from the column mapping to number the rows",
                "duplicate_id",
            )
        self.seen[ref_id] = where.removeprefix(f"{self.where} ")

    def _items(self, source: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        column = self.mapping.rows
        if column is None:
            yield source
            return
        items = source[column]
        if isinstance(items, Mapping):  # `datasets` 3 stores a list of structs as a struct of lists
            items = [dict(zip(items, values, strict=True)) for values in zip(*items.values(), strict=True)]
        for item in items or []:
            yield {**source, column: item}

    def _row(self, source: Mapping[str, Any], index: int, ref_id: int, where: str) -> dict[str, Any] | None:
        """Convert one item; None if it belongs to another split."""
        mapping, paths, values = self.mapping, self.mapping.paths(), {}
        for name, path in paths.items():
            try:
                values[name] = look_up(source, path)
            except ValueError as error:
                raise BadRowError(
                    f"{where}: expected JSON within '{path}', got other text ({error}); fix it"
                ) from None
        if mapping.split:
            value = values["split"]
            if value is None:
                raise BadRowError(f"{where}: expected a split in '{mapping.split}', got nothing; fill it in")
            if self.split not in (str(value), our_split(str(value), mapping)):
                return None

        def label(name: str) -> str:
            return f"{where}: '{paths.get(name)}'"

        image = values["image"]
        if isinstance(image, str):
            path = image if is_url(image) else str(named_file(Path(self.image_folder), image))
            image = {"path": path, "bytes": None}
        if not isinstance(image, Mapping) or not (image.get("path") or image.get("bytes")):
            raise BadRowError(f"{label('image')}: expected an image, got none; add its file name or its bytes")
        require_no_url(image, label("image"))
        if not image.get("bytes"):
            _note_outside(Path(str(image["path"])), self.image_folder, label("image"))
        height, width = upright_size(image, label("image"))
        sentences = read_sentences(values["sentences"], label("sentences"))
        ref_id = read_id(values.get("ref_id"), ref_id, label("ref_id"))
        category_id = read_id(values.get("category_id"), -1, label("category_id"))
        no_target = values.get("no_target")
        # Columns may store booleans as 0 and 1.
        no_target = read_flag(bool(no_target) if no_target in (True, False) else no_target, label("no_target"))
        ann_ids = [] if no_target else [read_id(values.get("ann_id"), ref_id, label("ann_id"))]
        file_name = values.get("file_name") or image.get("path") or f"{self.split}-{index}"
        sent_ids = values.get("sent_ids")
        if isinstance(sent_ids, list) and len(sent_ids) == len(sentences):
            sent_ids = [read_id(sent_id, -1, label("sent_ids")) for sent_id in sent_ids]
        else:
            sent_ids = sentence_ids(ref_id, len(sentences))
        return make_row(
            image={"path": image.get("path"), "bytes": image.get("bytes")},
            sentences=sentences,
            mask=unite_masks([], height, width) if no_target else self._mask(values, height, width, where),
            ref_id=ref_id,
            ann_ids=ann_ids,
            image_id=read_id(values.get("image_id"), text_id(str(file_name)), label("image_id")),
            sent_ids=sent_ids,
            category_id=category_id,
            split=self.split,
            dataset=self.dataset,
            file_name=os.path.basename(str(file_name)),
        )

    def _mask(self, values: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
        mapping, name = self.mapping, "box" if self.mapping.mask is None else "mask"
        value, fractions = values[name], mapping.units == "fractions"
        where = f"{where}: '{mapping.paths()[name]}'"
        if value is None:
            raise BadRowError(f"{where}: expected a {name}, got nothing; add it, or mark the row as no_target")
        if name == "box":
            return read_box(value, height, width, where, corners=mapping.box_format == "xyxy", fractions=fractions)

        def find_file(name: str) -> str:
            file = named_file(Path(self.image_folder), name)
            _note_outside(file, self.image_folder, where)
            return str(file)

        return read_mask(value, height, width, where, find_file=find_file, fractions=fractions)


def _note_outside(file: Path, image_folder: str, where: str) -> None:
    """Notice a file that is neither in the image folder nor in a cache, where `datasets` puts downloaded files."""
    if not any(is_inside(file, cache) for cache in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)):
        note_outside(file, Path(image_folder), where)


def require_no_url(image: Mapping[str, Any], where: str) -> None:
    """Raise a BadRowError if an image is a URL: training would fetch it again in each epoch, from anywhere."""
    if image.get("bytes") is None and is_url(str(image.get("path"))):
        raise BadRowError(
            f"{where}: expected an image or its file name, got the URL {image['path']!r:.80}, which is not fetched; "
            "download the image",
            "image_missing",
        )


class RowChecker:
    """Checks rows that have the columns `FEATURES` already; images are not read.

    Args:
        where: prefix of error messages.
        image_folder: folder of images that are stored as file names.
        bad_rows: collects invalid rows; None raises the first.
        streaming: rows are read once per epoch.
    """

    columns = tuple(name for name in FEATURES if name != "image")

    def __init__(self, where: str, image_folder: str, bad_rows: BadRows | None, streaming: bool) -> None:
        self.where, self.image_folder, self.bad_rows = where, image_folder, bad_rows
        # Streams are re-read each epoch, so seen ids are not tracked.
        self.seen: set[tuple[str, int]] | None = None if streaming else set()

    def is_valid(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row is valid; an invalid one is collected or raised.

        Args:
            row: the columns; of `image`, `bytes` may be any value that is not None.
        """
        where = f"{self.where}: reference {row['ref_id']} ({row['file_name']})"
        try:
            self._check(row, where)
        except BadRowError as error:
            reject(error, self.bad_rows)
            return False
        return True

    def _check(self, row: Mapping[str, Any], where: str) -> None:
        empty = [name for name in self.columns if row[name] is None]
        if empty:
            raise BadRowError(f"{where}: expected a value in every column, got none in '{empty[0]}'; fill it in")
        image = row["image"] or {}
        if image.get("bytes") is None and not image.get("path"):
            raise BadRowError(f"{where}: 'image': expected an image, got none; add its bytes", "image_missing")
        require_no_url(image, f"{where}: 'image'")
        if image.get("bytes") is None:
            _note_outside(Path(image["path"]), self.image_folder, where)
        read_sentences(row["sentences"], f"{where}: 'sentences'")
        size = (row["mask"] or {}).get("size")
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(isinstance(side, int) and side > 0 for side in size)
        ):
            raise BadRowError(
                f"{where}: 'mask': expected a size [height, width], got {size!r:.40}; write the mask again",
                "mask_malformed",
            )
        read_mask(row["mask"], size[0], size[1], f"{where}: 'mask'", no_target=row["no_target"])
        if self.seen is not None:
            if (row["dataset"], row["ref_id"]) in self.seen:
                raise BadRowError(
                    f"{where}: expected a unique 'ref_id', got {row['ref_id']}, used by an earlier row of "
                    f"{row['dataset']}; fix it",
                    "duplicate_id",
                )
            self.seen.add((row["dataset"], row["ref_id"]))
