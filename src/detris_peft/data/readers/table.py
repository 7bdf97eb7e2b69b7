"""Reader for one CSV, TSV or JSON Lines file, through a `ColumnMapping`.

--dataset labels.csv --columns "image=img,sentences=caption,mask=polygon"

    img;caption;polygon
    0001.jpg;the left rose;[[10, 20], [40, 22], [30, 60]]
    0001.jpg;the tulip;masks/0001-2.png

Each row is one reference, also if several rows describe one object. Images and masks are relative to the folder of the
file, or to --image_folder. A cell with several sentences is a JSON list of texts; a mask or a box may also be numbers
without brackets: "10, 20, 40, 22".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ...safe_loading import parse_json
from ..errors import BadRowError, BadRows, join_names, reject, short
from ..schema import FEATURES
from .coco import PLACEHOLDER, coco_splits
from .column_mapping import ColumnMapping, example_mapping, look_up, our_split
from .folder import METADATA
from .hub_rows import RowConverter
from .hub_tables import in_chunks, require_columns
from .paths import find_image_folder
from .registry import DatasetReader, Source, candidate_paths
from .table_files import CSV, LINES, Table, read_table

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NUMBERS = re.compile(r"[\s\d.,;eE+-]+")
# Names of the columns that are used for each field if there is no mapping.
_DEFAULT = {"image": ("image", "file_name"), "sentences": ("sentences", "sentence"), "mask": ("mask",)}
_OPTIONAL = ("split", "no_target", "ref_id", "ann_id", "image_id", "sent_ids", "category_id")


class TableReader(DatasetReader):
    """Reads one .csv, .tsv or .jsonl file; "{split}" in the name is replaced by the split's name."""

    name = "table"
    title = "CSV or JSON Lines"
    accepts = "a .csv, .tsv or .jsonl file"
    options = ("columns", "image_folder")
    generic = True

    def detect(self, source: Source) -> bool:
        return Path(source.dataset).suffix.lower() in (*CSV, *LINES) and bool(_files(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return _files(source).values()

    def splits(self, source: Source) -> Iterable[str]:
        files = _files(source)
        if None not in files:
            return [str(split) for split in files]
        table, mapping = _open(source, files[None], BadRows())
        return _splits(table, mapping) if mapping.split else ["train"]

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        files = _files(source)
        file = files.get(split) or files.get(None)
        if file is None:
            raise ValueError(f"{source.dataset}: no split '{split}', expected one of {join_names(map(str, files))}")
        table, mapping = _open(source, file, bad_rows)
        found = [split] if None not in files else _splits(table, mapping) if mapping.split else ["train"]
        if split not in found:
            hint = "; `detris data split` makes splits" if found == ["train"] else ""
            raise ValueError(f"{file}: no split '{split}', expected one of {join_names(found)}{hint}")
        folder = file.parent
        if source.image_folder is not None:
            folder = find_image_folder(Path(source.data_root), source.image_folder.replace(PLACEHOLDER, split))
        converter = RowConverter(mapping, str(file), split, os.path.abspath(folder), bad_rows, False, where=str(file))
        return in_chunks(_converted(table, converter, file.suffix.lower() in CSV), FEATURES)


def _files(source: Source) -> dict[str | None, Path]:
    """Return the file of each split; of None if the name has no placeholder."""
    for path in candidate_paths(source):
        if PLACEHOLDER in source.dataset:
            splits = coco_splits(path)
            if splits:
                return {split: Path(str(path).replace(PLACEHOLDER, split)) for split in splits}
        elif path.is_file():
            return {None: path}
    return {}


def _open(source: Source, file: Path, bad_rows: BadRows | None) -> tuple[Table, ColumnMapping]:
    """Read a file; return its rows, and the mapping of its columns.

    Raises:
        ValueError: the file or the mapping is invalid, or there is no mapping.
    """
    if file.name == METADATA and not source.columns:
        raise ValueError(f"{file}: expected the folder of {METADATA}, got the file; pass {file.parent}")
    table = read_table(file, bad_rows)
    mapping = ColumnMapping.parse(source.columns) if source.columns else _default_mapping(table.columns)
    if mapping is None:
        raise ValueError(
            f"{file}: expected --columns, which says what the columns {join_names(table.columns[:20])} are, got none; "
            f'pass it, for example --columns "{example_mapping(table.columns)}"'
        )
    require_columns(table.columns, mapping, str(file))
    return table, mapping


def _default_mapping(columns: list[str]) -> ColumnMapping | None:
    """Return the mapping of columns that are named as in a metadata.jsonl, or None if they are not."""
    found: dict[str, Any] = {
        field: name for field, names in _DEFAULT.items() for name in reversed(names) if name in columns
    }
    if len(found) < len(_DEFAULT):
        return None
    found |= {name: name for name in _OPTIONAL if name in columns}
    return ColumnMapping(**found)


def _splits(table: Table, mapping: ColumnMapping) -> list[str]:
    """Return our names of the splits that the column `mapping.split` names."""
    assert mapping.split is not None
    values = (look_up(row, mapping.split) for _, row in table.rows)
    return sorted({our_split(str(value), mapping) for value in values if value is not None})


def _converted(table: Table, converter: RowConverter, is_text: bool) -> Iterable[dict[str, Any]]:
    for index, (number, row) in enumerate(table.rows):
        name = f"line {number}"
        try:
            source = _typed(row, converter.mapping, f"{converter.where} {name}") if is_text else row
        except BadRowError as error:
            reject(error, converter.bad_rows)
            continue
        yield from converter.convert(source, index, name)


def _typed(row: Mapping[str, Any], mapping: ColumnMapping, where: str) -> Mapping[str, Any]:
    """Return the cells of a row of text with lists, numbers and booleans where the mapping needs them.

    Raises:
        BadRowError: a cell with several sentences is not JSON.
    """
    typed = dict(row)
    for field, column in mapping.paths().items():
        text = row.get(column)
        if text is None:
            continue
        if field == "no_target":
            typed[column] = _FLAGS.get(text.strip().lower(), text)
        elif field == "sentences" and re.match(r"\[\s*[\"']", text):
            typed[column] = _sentences(text, f"{where}: '{column}'")
        elif field in ("mask", "box") and _NUMBERS.fullmatch(text):
            try:
                numbers = [float(number) for number in re.split(r"[\s,;]+", text.strip())]
            except ValueError:
                continue  # such as a date, in the name of a file
            if len(numbers) >= 4:
                typed[column] = numbers
    return typed


def _sentences(text: str, where: str) -> Any:
    try:
        return parse_json(text, where)
    except ValueError:
        raise BadRowError(
            f"{where}: expected a sentence, or a JSON list of sentences in double quotes, got {short(text)}; write "
            "lists with json.dumps"
        ) from None
