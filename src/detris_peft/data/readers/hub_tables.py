"""Join converted rows with the images of a `datasets` table, without decoding or copying the images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np

from ..errors import join_names
from ..schema import FEATURES, ImageFeature
from .column_mapping import ColumnMapping
from .hub_rows import RowChecker, RowConverter

_CHUNK = 10_000
# Placeholder for a skipped row.
_EMPTY_ROW = dict.fromkeys(FEATURES)
_WITHOUT_IMAGE = datasets.Features({name: kind for name, kind in FEATURES.items() if name != "image"})


def convert_stream(source: datasets.IterableDataset, columns: list[str], rows: RowConverter) -> Any:
    """Convert rows lazily, one at a time, as the stream is read."""
    return undecoded(source).map(
        rows.convert_batch, with_indices=True, batched=True, batch_size=1, remove_columns=columns, features=FEATURES
    )


def convert_table(source: datasets.Dataset, rows: RowConverter) -> datasets.Dataset:
    """Convert all rows; image bytes stay in the source's files unless a source row has several references."""
    if not _holds_images(source, rows.mapping.image):
        return _from_file_names(source, rows)
    return _from_nested_rows(source, rows) if rows.mapping.rows else _join_images(source, rows)


def check_stream(source: datasets.IterableDataset, rows: RowChecker) -> datasets.IterableDataset:
    """Skip invalid rows as the stream is read."""
    source = source.select_columns(list(FEATURES)).cast_column("image", datasets.Image(decode=False))
    return source.filter(rows.is_valid).cast_column("image", ImageFeature())


def check_table(source: datasets.Dataset, rows: RowChecker) -> datasets.Dataset:
    """Return the valid rows."""
    source = source.select_columns(list(FEATURES)).cast_column("image", ImageFeature())
    valid = [index for index, row in enumerate(_rows_without_bytes(source)) if rows.is_valid(row)]
    return source if len(valid) == len(source) else source.select(valid)


def stored_rows(source: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows as stored, without decoding images."""
    for table in source.with_format("arrow").iter(batch_size=16):
        yield from table.to_pylist()  # type: ignore[union-attr]  # a pyarrow table


def _rows_without_bytes(source: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows whose `image` has True in place of its bytes, so that no image is read."""
    for table in source.with_format("arrow").iter(batch_size=1000):
        stored: Any = table  # a pyarrow table
        images = []
        for chunk in stored["image"].chunks:
            fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
            images += zip(fields["bytes"].is_valid().to_pylist(), fields["path"].to_pylist(), strict=True)
        others = stored.drop_columns(["image"]).to_pylist()
        for row, (has_bytes, path) in zip(others, images, strict=True):
            yield {**row, "image": {"bytes": has_bytes or None, "path": path}}


def top_column(path: str, columns: list[str]) -> str:
    """Return the column in which a dotted path starts."""
    return path if path in columns else path.split(".")[0]


def require_columns(columns: list[str], mapping: ColumnMapping, path: str) -> None:
    """Raise a ValueError if a column of a mapping is missing in the table at `path`."""
    for name, column in mapping.paths().items():
        if top_column(column, columns) not in columns:
            raise ValueError(
                f"{path}: expected the column '{column}' for '{name}', got {join_names(columns)}; fix the mapping"
            )


def undecoded(source: Any) -> Any:
    """Return the same rows with images as `{"path", "bytes"}`."""
    for name, kind in (source.features or {}).items():
        if isinstance(kind, datasets.Image):
            source = source.cast_column(name, datasets.Image(decode=False))
    return source


def _holds_images(source: datasets.Dataset, column: str) -> bool:
    kind = source.features.get(column)
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and {"bytes", "path"} == set(kind))


def _required_columns(source: datasets.Dataset, rows: RowConverter) -> datasets.Dataset:
    paths = rows.mapping.paths().values()
    return source.select_columns(sorted({top_column(path, source.column_names) for path in paths}))


def _from_file_names(source: datasets.Dataset, rows: RowConverter) -> datasets.Dataset:
    """Build an in-memory table whose images are file names."""
    converted = (rows.convert(row, index) for index, row in enumerate(stored_rows(_required_columns(source, rows))))
    return in_chunks(itertools.chain.from_iterable(converted), FEATURES)


def _join_images(source: datasets.Dataset, rows: RowConverter) -> datasets.Dataset:
    """Join the source's image column, which stays on disk, with an in-memory table of all other columns."""
    image, skipped = rows.mapping.image, []

    def one_to_one() -> Iterator[dict[str, Any]]:
        for index, row in enumerate(stored_rows(_required_columns(source, rows))):
            converted = next(rows.convert(row, index), None)
            if converted is None:
                skipped.append(index)
            yield converted or _EMPTY_ROW

    others = in_chunks(one_to_one(), _WITHOUT_IMAGE)
    images = source.select_columns([image]).rename_columns({image: "image"} if image != "image" else {})
    joined = datasets.concatenate_datasets([images.cast_column("image", ImageFeature()), others], axis=1)
    return joined.select(np.setdiff1d(np.arange(len(joined)), skipped)) if skipped else joined


def _from_nested_rows(source: datasets.Dataset, rows: RowConverter) -> datasets.Dataset:
    """Convert images with several references; `datasets` writes each reference with its image into its cache."""
    return undecoded(source).map(
        rows.convert_batch,
        with_indices=True,
        batched=True,
        batch_size=1,
        remove_columns=source.column_names,
        features=FEATURES,
        load_from_cache_file=False,  # invalid rows must be found each time
        desc="reading references",
    )


def in_chunks(rows: Iterable[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """Build an in-memory table chunk by chunk, so that not all rows are Python objects at once."""
    tables, chunk = [], {name: [] for name in features}
    for row in rows:
        for name, values in chunk.items():
            values.append(row[name])
        if len(chunk["ref_id"]) == _CHUNK:
            tables.append(datasets.Dataset.from_dict(chunk, features=features))
            chunk = {name: [] for name in features}
    return datasets.concatenate_datasets([*tables, datasets.Dataset.from_dict(chunk, features=features)])
