"""Files of VGG Image Annotator: projects, and annotations as JSON or CSV; see `via`."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....safe_loading import parse_json, read_json
from ...errors import BadRowError, join_names, short
from .files import head_keys, head_text

SUFFIXES = (".json", ".csv")
_PROJECT = "_via_img_metadata"
_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_HEAD = 1 << 16  # bytes
# The start of exported annotations: an object for the first image. VIA 1 writes "fileref" first.
_FIRST_IMAGE = re.compile(
    r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"(?:filename|fileref|size|regions|file_attributes)"\s*:'
)


def is_via(file: Path) -> bool:
    """Return whether the start of a file is that of a project or of exported annotations."""
    suffix = file.suffix.lower()
    if suffix == ".json" and _PROJECT in head_keys(file)[1]:
        return True
    if suffix not in SUFFIXES:
        return False
    head = head_text(file, _HEAD)
    if suffix == ".csv":
        return all(name in head.split("\n", 1)[0] for name in _COLUMNS)
    return _FIRST_IMAGE.match(head) is not None and '"filename"' in head and '"regions"' in head


def read_via(file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the images of a file by their keys, and the project, which is empty for exported annotations.

    Raises:
        FileNotFoundError, ValueError: the file is missing or cannot be read. For an invalid line of CSV, a region or
            an image is a `BadRowError`.
    """
    if file.suffix.lower() == ".csv":
        return _read_csv(file), {}
    content = read_json(file)
    images = content.get(_PROJECT, content) if isinstance(content, Mapping) else content
    if not isinstance(images, dict):
        raise ValueError(f"{file}: expected the images of VIA as an object, got {short(images)}; export them again")
    return images, content if images is not content else {}


def _read_csv(file: Path) -> dict[str, Any]:
    """Return the images of a CSV file in the form of the JSON files; see `read_via` for invalid lines."""
    images: dict[str, Any] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            reader.fieldnames = [name.lstrip("#").strip() for name in reader.fieldnames or ()]  # VIA 1: "#filename"
            if not set(_COLUMNS) <= set(reader.fieldnames):
                got = join_names(reader.fieldnames)
                raise ValueError(f"{file}: expected the columns {', '.join(_COLUMNS)}, got {got:.100}; add them")
            for line in reader:
                where = f"{file}: line {reader.line_num}"
                if None in line or None in line.values():
                    images[where] = BadRowError(
                        f"{where}: expected as many fields as the header has, got another number (VIA does not quote "
                        "a comma in a file name); export the annotations as JSON"
                    )
                    continue
                key = f"{line['filename']}{line.get('file_size') or ''}"
                image = images.setdefault(key, {"filename": line["filename"], "regions": []})
                if line["region_shape_attributes"] != "{}":  # an image without regions has one line
                    image["regions"].append(_csv_region(line, where))
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected CSV in UTF-8, got another encoding; save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{file}: expected CSV, got an error: {error}; export the annotations as JSON") from None
    return images


def _csv_region(line: Mapping[str, str], where: str) -> dict[str, Any] | BadRowError:
    try:
        return {
            "shape_attributes": parse_json(line["region_shape_attributes"], f"{where}: 'region_shape_attributes'"),
            "region_attributes": parse_json(line["region_attributes"], f"{where}: 'region_attributes'"),
        }
    except ValueError as error:
        return BadRowError(str(error).removesuffix("."))
