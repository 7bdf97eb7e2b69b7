"""Any `datasets` repository or local folder, read through a `ColumnMapping`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..errors import BadRowError, BadRows, reject
from ..fields import (
    read_box,
    read_id,
    read_mask,
    read_sentences,
    sentence_ids,
    text_id,
    upright_size,
)
from ..masks import unite_masks
from ..schema import FEATURES, ImageFeature
from .column_mapping import ColumnMapping, look_up, shipped_mappings
from .hub_files import open_rows, open_split, repository_splits

_CHUNK = 10_000
# In the place of a row that is left out.
_NOTHING = dict.fromkeys(FEATURES)
_WITHOUT_IMAGE = datasets.Features({name: kind for name, kind in FEATURES.items() if name != "image"})


def load_mapped(
    path: str,
    split: str,
    mapping: ColumnMapping | None = None,
    *,
    name: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    streaming: bool = False,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """A dataset on the Hub, or a local folder of parquet or other files, with the columns `FEATURES`.

    Images stay where `datasets` keeps them: only their headers are read here, for their sizes. (With `rows` in the
    mapping they are written once more, for each of their references.) What `detris data convert` wrote needs no
    mapping.

    Args:
        path: what `datasets.load_dataset` takes, or a folder that `save_to_disk` wrote.
        split: ours; see `ColumnMapping.splits`.
        mapping: which column is what; None if the columns are `FEATURES` already, or a shipped mapping is for `path`.
        name: the configuration, where there are several.
        image_folder: holds the images (and mask PNGs) where the columns only name them; by default `path`.
        streaming: rows are fetched and converted one at a time, as they are asked for; their `image` stays
            `{"path", "bytes"}`, which `open_image` opens.
        bad_rows: collects bad rows; None raises the first. A stream collects while it is read, in the process that
            reads it.

    Raises:
        OSError: there is no such dataset, or it cannot be reached.
        ValueError: the split or a column is unknown; as `BadRowError`, a row is bad.
    """
    mapping = mapping or ColumnMapping.for_repository(path)
    source = open_rows(path, split, mapping, name, streaming)
    if mapping is None and _is_converted(source):
        rows = _ConvertedRows(f"{path} {split}", bad_rows, streaming)
        return (
            _checked_stream(source, rows) if isinstance(source, datasets.IterableDataset) else _checked(source, rows)
        )
    mapping = mapping or _own_names(source, path)
    rows = _Rows(mapping, path, split, os.path.abspath(image_folder or path), bad_rows, streaming)
    if isinstance(source, datasets.IterableDataset):
        source = _undecoded(source)
        columns = _columns(source)
        _require_columns(columns, mapping, path)
        return source.map(
            rows.convert, with_indices=True, batched=True, batch_size=1, remove_columns=columns, features=FEATURES
        )
    _require_columns(source.column_names, mapping, path)
    if not _holds_images(source, mapping.image):
        return _gathered(source, rows)
    return _multiplied(source, rows) if mapping.rows else _joined(source, mapping.image, rows)


def mapped_splits(path: str, mapping: ColumnMapping | None = None, *, name: str | None = None) -> list[str]:
    """The splits that `load_mapped` takes, as we name them; raises as it does."""
    mapping = mapping or ColumnMapping.for_repository(path)
    found = repository_splits(path, name)
    if mapping and mapping.split:
        parts = [open_split(path, one, name, streaming=False) for one in found]
        column = [_top(mapping.split, part.column_names) for part in parts][:1]
        rows = (row for part in parts for row in _plain(part.select_columns(column)))
        found = {str(look_up(row, mapping.split)) for row in rows}
    ours = {theirs: ours for ours, theirs in (mapping.splits if mapping else {}).items()}
    return sorted(ours.get(split, "val" if split == "validation" else split) for split in found)


class _Rows:
    """Turns a row of the source into rows of `FEATURES`; `image` stays `{"path", "bytes"}`."""

    def __init__(
        self,
        mapping: ColumnMapping,
        path: str,
        split: str,
        image_folder: str,
        bad_rows: BadRows | None,
        streaming: bool,
    ) -> None:
        self.mapping, self.split, self.bad_rows = mapping, split, bad_rows
        self.where, self.image_folder = f"{path} {split}", image_folder
        # Of a stream that is read several times over, nobody keeps all ids.
        self.seen: set[int] | None = set() if mapping.ref_id and not streaming else None
        self.dataset = Path(os.path.abspath(path)).name if os.path.isdir(path) else path

    def convert(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """For `IterableDataset.map`, batches of one."""
        rows = list(self.read({name: values[0] for name, values in batch.items()}, indices[0]))
        return {name: [row[name] for row in rows] for name in FEATURES}

    def read(self, source: Mapping[str, Any], index: int) -> Iterator[dict[str, Any]]:
        for number, item in enumerate(self._items(source)):
            inner = f", item {number}" if self.mapping.rows else ""
            try:
                ref_id = index * 1000 + number if inner else index
                row = self._row(item, index, ref_id, f"{self.where} row {index}{inner}")
                if row is not None and self.seen is not None:
                    self._require_new(row["ref_id"], f"{self.where} row {index}{inner}")
            except BadRowError as error:
                reject(error, self.bad_rows)
                continue
            if row is not None:
                yield row

    def _require_new(self, ref_id: int, where: str) -> None:
        assert self.seen is not None
        if ref_id in self.seen:
            raise BadRowError(
                f"{where}: '{self.mapping.ref_id}' {ref_id} stood in an earlier row: mend it, or leave 'ref_id' out "
                "of the column mapping to have rows numbered",
                "duplicate_id",
            )
        self.seen.add(ref_id)

    def _items(self, source: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        column = self.mapping.rows
        if column is None:
            yield source
            return
        items = source[column]
        if isinstance(items, Mapping):  # a list of structs, as `datasets` 3 keeps it
            items = [dict(zip(items, values, strict=True)) for values in zip(*items.values(), strict=True)]
        for item in items or []:
            yield {**source, column: item}

    def _row(self, source: Mapping[str, Any], index: int, ref_id: int, where: str) -> dict[str, Any] | None:
        mapping, paths, values = self.mapping, self.mapping.paths(), {}
        for name, path in paths.items():
            try:
                values[name] = look_up(source, path)
            except ValueError as error:
                raise BadRowError(f"{where}: '{path}' leads through text that is no JSON ({error}): mend it") from None
        if mapping.split and str(values["split"]) != mapping.splits.get(self.split, self.split):
            return None

        image = values["image"]
        if isinstance(image, str):
            image = {"path": self._file(image), "bytes": None}
        if not isinstance(image, Mapping) or not (image.get("path") or image.get("bytes")):
            raise BadRowError(f"{where}: '{paths['image']}' holds no image: give its file's name or its bytes")
        height, width = upright_size(image, f"{where}: '{paths['image']}'")
        sentences = read_sentences(values["sentences"], f"{where}: '{paths['sentences']}'")
        ids = {
            name: read_id(values.get(name), default, f"{where}: '{paths.get(name)}'")
            for name, default in (("ref_id", ref_id), ("category_id", -1))
        }
        no_target = values.get("no_target") or False
        if no_target not in (True, False):
            raise BadRowError(f"{where}: '{paths['no_target']}' is {no_target!r}: it must be true or false")
        ann_id = -1 if no_target else read_id(values.get("ann_id"), ids["ref_id"], f"{where}: '{paths.get('ann_id')}'")
        file_name = values.get("file_name") or image.get("path") or f"{self.split}-{index}"
        sent_ids = values.get("sent_ids")
        return {
            "image": {"path": image.get("path"), "bytes": image.get("bytes")},
            "sentences": sentences,
            "mask": unite_masks([], height, width) if no_target else self._mask(values, height, width, where),
            **ids,
            "ann_id": ann_id,
            "ann_ids": [] if no_target else [ann_id],
            "no_target": bool(no_target),
            "image_id": read_id(
                values.get("image_id"), text_id(str(file_name)), f"{where}: '{paths.get('image_id')}'"
            ),
            "sent_ids": [read_id(one, -1, f"{where}: '{paths.get('sent_ids')}'") for one in sent_ids]
            if isinstance(sent_ids, list) and len(sent_ids) == len(sentences)
            else sentence_ids(ids["ref_id"], len(sentences)),
            "split": self.split,
            "dataset": self.dataset,
            "file_name": os.path.basename(str(file_name)),
        }

    def _mask(self, values: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
        mapping, name = self.mapping, "box" if self.mapping.mask is None else "mask"
        value, fractions = values[name], mapping.units == "fractions"
        where = f"{where}: '{mapping.paths()[name]}'"
        if value is None:
            raise BadRowError(f"{where} is missing: mark the target, or say with no_target that there is none")
        if name == "box":
            return read_box(value, height, width, where, corners=mapping.box_format == "xyxy", fractions=fractions)
        return read_mask(value, height, width, where, find_file=self._file, fractions=fractions)

    def _file(self, name: str) -> str:
        return os.path.join(self.image_folder, name)


class _ConvertedRows:
    """Looks over rows that are of `FEATURES` already; their images are left alone."""

    columns = ("sentences", "mask", "no_target", "dataset", "ref_id", "file_name")

    def __init__(self, where: str, bad_rows: BadRows | None, streaming: bool) -> None:
        self.where, self.bad_rows = where, bad_rows
        self.seen: set[tuple[str, int]] | None = None if streaming else set()

    def good(self, row: Mapping[str, Any]) -> bool:
        where = f"{self.where}: reference {row['ref_id']} ({row['file_name']})"
        try:
            read_sentences(row["sentences"], f"{where}: 'sentences'")
            if not row["no_target"]:
                height, width = row["mask"]["size"]
                read_mask(row["mask"], height, width, f"{where}: 'mask'")
            if self.seen is not None:
                if (row["dataset"], row["ref_id"]) in self.seen:
                    raise BadRowError(f"{where}: 'ref_id' stood in an earlier row: mend it", "duplicate_id")
                self.seen.add((row["dataset"], row["ref_id"]))
        except BadRowError as error:
            reject(error, self.bad_rows)
            return False
        return True


def _is_converted(source: datasets.Dataset | datasets.IterableDataset) -> bool:
    there = source.features or {}
    return all(name in there and there[name] == kind for name, kind in FEATURES.items())


def _own_names(source: datasets.Dataset | datasets.IterableDataset, path: str) -> ColumnMapping:
    """For columns that bear our names, but not all of them or of other types."""
    columns = _columns(source)
    if not {"image", "sentences", "mask"} <= set(columns):
        raise ValueError(
            f"{path}: has the columns {', '.join(columns)}: say which is which, as in "
            f"image=...,sentences=...,mask=..., or name a mapping: {', '.join(shipped_mappings())}"
        )
    optional = ("no_target", "ref_id", "ann_id", "image_id", "sent_ids", "category_id", "file_name")
    given: dict[str, Any] = {name: name for name in optional if name in columns}
    return ColumnMapping(mask="mask", **given)


def _require_columns(columns: list[str], mapping: ColumnMapping, path: str) -> None:
    for name, wanted in mapping.paths().items():
        if _top(wanted, columns) not in columns:
            raise ValueError(f"{path}: no column '{wanted}' for '{name}': there are {', '.join(columns)}")


def _columns(source: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """A stream may have to be read as far as its first row for them."""
    return list(source.column_names or next(iter(source), {}))


def _top(path: str, columns: list[str]) -> str:
    return path if path in columns else path.split(".")[0]


def _plain(source: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """Rows as they are stored: no image is decoded."""
    for table in source.with_format("arrow").iter(batch_size=16):
        yield from table.to_pylist()  # type: ignore[union-attr]  it is a pyarrow table


def _holds_images(source: datasets.Dataset, column: str) -> bool:
    kind = source.features.get(column)
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and {"bytes", "path"} == set(kind))


def _gathered(source: datasets.Dataset, rows: _Rows) -> datasets.Dataset:
    """For images that are files: a new table, of their names."""
    needed = sorted({_top(path, source.column_names) for path in rows.mapping.paths().values()})
    read = (rows.read(row, index) for index, row in enumerate(_plain(source.select_columns(needed))))
    return _in_chunks(itertools.chain.from_iterable(read), FEATURES)


def _joined(source: datasets.Dataset, image: str, rows: _Rows) -> datasets.Dataset:
    """For images within: the image column as it lies on the disk, beside a new table of all other columns."""
    needed = sorted({_top(path, source.column_names) for path in rows.mapping.paths().values()})
    left_out = []

    def one_for_one() -> Iterator[dict[str, Any]]:
        for index, row in enumerate(_plain(source.select_columns(needed))):
            found = next(rows.read(row, index), None)
            if found is None:
                left_out.append(index)
            yield found or _NOTHING

    others = _in_chunks(one_for_one(), _WITHOUT_IMAGE)
    images = source.select_columns([image]).rename_columns({image: "image"} if image != "image" else {})
    joined = datasets.concatenate_datasets([images.cast_column("image", ImageFeature()), others], axis=1)
    return joined.select(np.setdiff1d(np.arange(len(joined)), left_out)) if left_out else joined


def _multiplied(source: datasets.Dataset, rows: _Rows) -> datasets.Dataset:
    """For several references a image: `datasets` writes them out anew, each with its image, into its cache."""
    columns = source.column_names
    return _undecoded(source).map(
        rows.convert,
        with_indices=True,
        batched=True,
        batch_size=1,
        remove_columns=columns,
        features=FEATURES,
        load_from_cache_file=False,  # bad rows are to be found each time
        desc="reading references",
    )


def _in_chunks(rows: Iterator[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """A table in memory, without all rows being Python objects at once."""
    tables, chunk = [], {name: [] for name in features}
    for row in rows:
        for name, values in chunk.items():
            values.append(row[name])
        if len(chunk["ref_id"]) == _CHUNK:
            tables.append(datasets.Dataset.from_dict(chunk, features=features))
            chunk = {name: [] for name in features}
    return datasets.concatenate_datasets([*tables, datasets.Dataset.from_dict(chunk, features=features)])


def _checked(source: datasets.Dataset, rows: _ConvertedRows) -> datasets.Dataset:
    source = source.select_columns(list(FEATURES)).cast_column("image", ImageFeature())
    good = [index for index, row in enumerate(_plain(source.select_columns(list(rows.columns)))) if rows.good(row)]
    return source if len(good) == len(source) else source.select(good)


def _checked_stream(source: datasets.IterableDataset, rows: _ConvertedRows) -> datasets.IterableDataset:
    source = source.select_columns(list(FEATURES)).cast_column("image", datasets.Image(decode=False))
    return source.filter(rows.good).cast_column("image", ImageFeature())


def _undecoded(source: Any) -> Any:
    """The same rows with images as `{"path", "bytes"}`."""
    for name, kind in (source.features or {}).items():
        if isinstance(kind, datasets.Image):
            source = source.cast_column(name, datasets.Image(decode=False))
    return source
