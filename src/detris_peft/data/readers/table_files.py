"""Rows of CSV, TSV and JSON Lines files, in the encodings and with the separators that spreadsheets write."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import one_line
from ...safe_loading import parse_json
from ..errors import BadRowError, BadRows, join_names, notice, reject

LINES = (".jsonl", ".ndjson")
CSV = (".csv", ".tsv")
_SEPARATORS = ",;\t"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Western European text has no such sequence of accented letters, but other alphabets read as Windows-1252 have.
_OTHER_ALPHABET = re.compile(r"[\u0080-\u00ff\u0152-\u2122]{4}")


@dataclass(frozen=True)
class Table:
    """The content of a file.

    Args:
        columns: the names of the columns; for JSON Lines, all keys.
        rows: for each row, the number of its first line, and its values; empty cells of CSV are None.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]


def read_table(file: Path, bad_rows: BadRows | None) -> Table:
    """Read a file.

    Args:
        file: its suffix is one of `CSV` and `LINES`.
        bad_rows: collects rows with too many or too few cells, and lines that are no JSON objects; None raises the
            first.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: its encoding is unknown, its header is invalid, or it has no rows.
    """
    text = _decode(file)
    columns: list[str] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    first_error = None
    for number, row in _csv_rows(text, file, columns) if file.suffix.lower() in CSV else _json_rows(text, file):
        if isinstance(row, BadRowError):
            first_error = first_error or row
            reject(row, bad_rows)
        else:
            rows.append((number, row))
    columns = columns or list(dict.fromkeys(name for _, row in rows for name in row))
    if not rows and not (columns and bad_rows):
        got = f"invalid ones, of which the first is: {first_error}" if first_error else "none; add rows"
        raise ValueError(f"{file}: expected at least one row, got {got}")
    return Table(columns, rows)


def _decode(file: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 with a byte order mark, or Windows-1252."""
    data = file.read_bytes()
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text or (encoding == "cp1252" and _OTHER_ALPHABET.search(text)):
            continue
        if encoding == "cp1252":
            notice("encoding", f"{file}: not UTF-8, read as Windows-1252; if letters are wrong, save it as UTF-8")
        return text
    raise ValueError(f"{file}: expected text in UTF-8, got another encoding; save it as UTF-8")


def _csv_rows(text: str, file: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | BadRowError]]:
    """Yield the number of its first line and the cells of each row, or its error; fill the list of columns."""
    limit = csv.field_size_limit(max(len(text), 1))  # a polygon may be longer than the default
    try:
        yield from _parsed(text, file, columns)
    except csv.Error as error:
        raise ValueError(f"{file}: expected CSV, got an error: {one_line(error)}; save it again") from None
    finally:
        csv.field_size_limit(limit)


def _parsed(text: str, file: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | BadRowError]]:
    lines = io.StringIO(text, newline="")  # newlines in quotes are kept
    first_line = lines.readline()
    declared = re.fullmatch(r"sep=(.)\r?\n?", first_line)  # Excel writes it
    if not declared:
        lines.seek(0)
    separator = declared[1] if declared else _separator(first_line, file)
    skipped = 1 if declared else 0
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    named = [name for name in header if name]
    if len(set(named)) < len(named) or not named:
        raise ValueError(
            f"{file}: expected a first line with a different name for each column, got {join_names(header[:20])}; "
            "name the columns"
        )
    columns += named
    first = skipped + reader.line_num + 1
    for cells in reader:
        number, first = first, skipped + reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            message = (
                f"{file} line {number}: expected {len(header)} cells separated by {separator!r}, got {len(cells)}; "
                "put cells that contain the separator in double quotes"
            )
            yield number, BadRowError(message)
            continue
        yield number, {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True) if name}


def _separator(line: str, file: Path) -> str:
    """Return the character that splits the first line into most cells."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    counts = {separator: len(next(csv.reader([line], delimiter=separator), [])) for separator in _SEPARATORS}
    return max(_SEPARATORS, key=lambda separator: counts[separator])


def _json_rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any] | BadRowError]]:
    """Yield the number and the object of each line, or its error."""
    # Not splitlines(): JSON strings may contain the other line separators of Unicode unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            row = parse_json(line, where)
        except ValueError as error:
            message = str(error).replace("copy or download it again", "fix the line").removesuffix(".")
            yield number, BadRowError(message)
            continue
        if not isinstance(row, Mapping):
            yield number, BadRowError(f"{where}: expected a JSON object, got a {type(row).__name__}; fix the line")
            continue
        yield number, dict(row)
