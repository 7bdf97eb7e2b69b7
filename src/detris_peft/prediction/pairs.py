"""The rows of a prediction job: pairs of an image and a sentence, from options, folders, globs, files or a stream."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import one_line
from ..images import is_url
from ..safe_loading import parse_json
from ..text_cleaning import clean_sentence, has_surrogate
from .url_images import shown_url

STDIN = "-"
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".avif"),
)
_IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG")  # JPEG and PNG, whose first lines need not hold a null byte
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a prediction job.

    Attributes:
        image: name of the image in the results: the path or URL as in the input.
        text: the sentence.
        source: path or URL to open.
        error: why the row cannot be predicted, in one line; None if nothing is known against it.
    """

    image: str
    text: str
    source: str
    error: str | None = None


def list_images(values: Iterable[str], stdin: BinaryIO) -> tuple[list[str], list[str]]:
    """Return the images that the values of `--image` name, in their order, and one line per folder or glob.

    Args:
        values: files, folders (the images directly in them, sorted by name), globs (sorted; `**` matches folders at
            any depth), http(s) URLs, or "-": one path or URL per line of `stdin`.
        stdin: the standard input in binary mode.

    Raises:
        FileNotFoundError: a glob matches nothing.
        ValueError: a folder or the standard input holds no image, or the input is not text.
    """
    images: list[str] = []
    notices = []
    for value in values:
        if value == STDIN:
            images += _stdin_paths(stdin)
        elif is_url(value):
            images.append(value)
        elif os.path.isdir(value):
            found, others = _folder_images(value)
            images += found
            notices.append(
                f"{value}: {_count(len(found), 'image')}" + (f", {_count(others, 'other file')}" if others else "")
            )
        elif glob.has_magic(value) and not os.path.lexists(value):
            found = sorted(path for path in glob.glob(value, recursive=True) if not os.path.isdir(path))
            if not found:
                raise FileNotFoundError(f"--image {value}: expected files that match, found none; check the pattern.")
            images += found
            notices.append(f"{value}: {_count(len(found), 'file')}")
        else:
            images.append(value)
    return images, notices


def cross_pairs(images: Sequence[str], texts: Sequence[str]) -> list[Pair]:
    """Return every text on every image, the texts of an image one after the other."""
    return [_checked(image, text, image, "") for image in images for text in texts]


def read_pairs(file: str, stdin: BinaryIO, image_root: str | None = None) -> list[Pair]:
    """Read pairs from a table with the columns `image` and `text`; others are ignored.

    Invalid rows become pairs with an error, so that one of them does not stop a job.

    Args:
        file: CSV or TSV with a header, JSON Lines, or "-": JSON Lines from `stdin`.
        stdin: the standard input in binary mode.
        image_root: folder that relative paths start from; default: the folder of `file`, or the working directory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is of another kind, lacks a column, or has no valid row.
    """
    suffix = Path(file).suffix.lower()
    if image_root is None:
        image_root = "" if file == STDIN else os.path.dirname(file)
    if file == STDIN:
        pairs = [*_json_pairs(stdin, "stdin", image_root)]
    elif suffix not in (*_DELIMITERS, *_JSON_LINES):
        raise ValueError(
            f"--pairs {file}: expected a name that ends with .csv, .tsv or .jsonl, got another one; convert it."
        )
    elif not os.path.exists(file):
        raise FileNotFoundError(f"--pairs {file}: expected a CSV or JSON Lines file, found none; check the path.")
    elif not os.path.isfile(file):
        raise ValueError(f"--pairs {file}: expected a file, got a folder or a device; pass a file, or - for stdin.")
    elif suffix in _JSON_LINES:
        with open(file, "rb") as stream:
            pairs = [*_json_pairs(stream, file, image_root)]
    else:
        # Bytes that are not UTF-8 invalidate their row, not the file.
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as table:
            pairs = [*_csv_pairs(table, file, image_root, _DELIMITERS[suffix])]
    if not pairs:
        raise ValueError(f"--pairs {file}: expected rows with image and text, found none; check the file.")
    errors = [pair.error for pair in pairs if pair.error]
    if len(errors) == len(pairs):
        raise ValueError(f"--pairs {file}: expected valid rows, got none ({errors[0]}); correct the file.")
    return pairs


def _json_pairs(stream: BinaryIO, where: str, image_root: str) -> Iterator[Pair]:
    for number, line in enumerate(stream, 1):
        place = f"{where}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            yield Pair("", "", "", f"{place}: expected JSON in UTF-8, got another encoding; save it as UTF-8.")
            continue
        if not text:
            continue
        try:
            row = parse_json(text, place)
        except ValueError as error:
            yield Pair("", "", "", one_line(error))
            continue
        values = [row.get(name) for name in ("image", "text")] if isinstance(row, dict) else [None, None]
        image, sentence = (value if isinstance(value, str) else "" for value in values)
        if not all(isinstance(value, str) for value in values):
            yield Pair(image, sentence, "", f'{place}: expected {{"image": "...", "text": "..."}}; correct it.')
        else:
            yield _checked(image, sentence, image_root, f"{place}: ", joined=True)


def _csv_pairs(table: Iterable[str], where: str, image_root: str, delimiter: str) -> Iterator[Pair]:
    reader = csv.reader(table, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{where}: expected a header, got invalid CSV ({error}); correct it.") from None
    if any(header.count(name) != 1 for name in ("image", "text")):
        got = " ".join(", ".join(header).encode(errors="replace").decode().split())
        raise ValueError(
            f"{where}: expected a header in UTF-8 with the columns image and text, separated by {delimiter!r}, got "
            f"{got!r:.80}; rename them, or convert the file."
        )
    while True:
        first = reader.line_num + 1
        problem, row = None, []
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"expected CSV, got an error ({error}); check its quotes."
        last = reader.line_num
        place = f"{where}, line {first}: " if first == last else f"{where}, lines {first} to {last}: "
        if problem is None and not row:  # an empty line
            continue
        if problem is None and len(row) != len(header):
            problem = f"expected {len(header)} columns, got {len(row)}; put text with {delimiter!r} in double quotes."
        if problem is not None:
            yield Pair("", "", "", place + problem)
            continue
        image, text = (row[header.index(name)].strip() for name in ("image", "text"))
        if "\n" in image + text:
            # Otherwise a missing quote would silently turn several rows into one sentence.
            yield Pair(image, text, "", f"{place}expected one line, got a line break; check its quotes.")
        else:
            yield _checked(image, text, image_root, place, joined=True)


def _checked(image: str, text: str, source: str, place: str, joined: bool = False) -> Pair:
    """Return a pair, with an error if image or text are invalid.

    With `joined`, `source` is the folder that a relative path of the image starts from.
    """
    if joined:
        source = image if is_url(image) else os.path.join(source, image)
    error = None
    if not image or "\0" in image:
        error = f"{place}image: expected a path or URL, got {image!r:.80}; correct it."
    elif has_surrogate(image):
        error = f"{place}image: expected a name in UTF-8, got {image!r:.80}; rename the file."
    elif is_url(image) and not re.match(r"https?://", image, re.IGNORECASE):
        shown = shown_url(image)
        error = f"{place}image: expected a URL that starts with http:// or https://, got {shown!r:.80}; change it."
    else:
        try:
            clean_sentence(text, f"{place}text")
        except ValueError as problem:
            error = f"{one_line(problem)}."
    if error is None:
        return Pair(image, text, source)
    image, text = (value.encode(errors="backslashreplace").decode() for value in (image, text))
    return Pair(image, text, "", error)


def _folder_images(folder: str) -> tuple[list[str], int]:
    """Return the sorted images directly in a folder, and the number of its other files; hidden files are skipped."""
    names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    files = [name for name in names if not os.path.isdir(os.path.join(folder, name))]
    found = [os.path.join(folder, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise ValueError(f"--image {folder}: expected a folder with images, found none in it; pass another folder.")
    return found, len(files) - len(found)


def _stdin_paths(stdin: BinaryIO) -> list[str]:
    paths = []
    for number, line in enumerate(stdin, 1):
        path = line.decode(errors="surrogateescape").rstrip("\r\n")  # a name that is not UTF-8 is an invalid row
        if "\0" in path or line.startswith(_IMAGE_STARTS):
            raise ValueError(
                f"--image -: expected one path per line, got other bytes in line {number}; pass the path of an image, "
                "not its content."
            )
        paths += [path] if path.strip() else []
    if not paths:
        raise ValueError("--image -: expected one path per line, got none; pipe a list of paths.")
    return paths


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
