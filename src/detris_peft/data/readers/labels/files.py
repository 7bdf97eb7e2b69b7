"""What the readers of labeling tools need to recognize their files, and to find images."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....errors import one_line
from ...errors import BadRowError, short
from ..paths import find_image_folder
from ..registry import Source, dataset_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Names of folders that hold one split each, and our names for the splits.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Maximum number of files per folder that are read to detect a format: a folder may contain one large file per image.
MAX_DETECTED = 20
_HEAD = 1 << 20  # bytes
_TAGS_HEAD = 1 << 16  # bytes
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TAG = re.compile(r"<([A-Za-z_][\w.:-]*)")
# A string may be cut off at the end of the text. The pattern matches it too, so that no character is scanned twice.
_TOKEN = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)(?:"(\s*:)?|\\?\Z)|[\[\]{}]', re.DOTALL)


def head_keys(file: Path) -> tuple[str, frozenset[str]]:
    """Return the keys of the object at the start of a JSON file, without reading the entire file.

    Returns:
        "object" or "list", what the file holds, and the keys of the object, or of the first object in the list. Keys
        after the first 1,048,576 bytes are not found. ("", no keys) if the file is not JSON or cannot be read.
    """
    try:
        status = file.stat()
    except OSError:
        return "", frozenset()
    return _head_keys(str(file), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1000)  # several readers check the same file
def _head_keys(file: str, modified: int, size: int) -> tuple[str, frozenset[str]]:
    text = head_text(Path(file), _HEAD)
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return "", frozenset()
    own, depth, keys = (1 if start == "{" else 2), 0, set()
    for token in _TOKEN.finditer(text):
        bracket = token[0]
        if bracket in ("{", "["):
            depth += 1
        elif bracket in ("}", "]"):
            depth -= 1
            if depth < own and keys:
                break
        elif token[2] and depth == own:
            keys.add(token[1])
    return ("object" if start == "{" else "list"), frozenset(keys)


def head_tags(file: Path) -> list[str]:
    """Return the names of the elements at the start of an XML file, root first; none if it is not XML."""
    return _TAG.findall(head_text(file, _TAGS_HEAD))


def head_text(file: Path, size: int) -> str:
    """Return the text in the first `size` bytes of a file in UTF-8 or UTF-16; "" if it cannot be read.

    Bytes of other encodings are replaced: enough to recognize ASCII names.
    """
    try:
        with open(file, "rb") as opened:
            data = opened.read(size)
    except OSError:
        return ""
    return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig", "replace")


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, stripped, with their numbers.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected text in UTF-8, got another encoding; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file}: expected text, got a file that cannot be read: {one_line(error)}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Return the files with this suffix (".json") directly in a folder, sorted by name; none if it is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(suffix) and not entry.name.startswith(".") and entry.is_file()
        ]
    return [folder / name for name in sorted(names)]


def first_json_keys(folder: Path, limit: int = 3) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield `head_keys` of the first few JSON files in a folder."""
    for file in files_in(folder, ".json")[:limit]:
        yield head_keys(file)


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the subfolders that hold one split each ("train", "valid", ...), keyed by our name of the split."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower() in SPLIT_FOLDERS and entry.is_dir()]
    found = {name.lower(): folder / name for name in sorted(names)}
    splits: dict[str, Path] = {}
    for name, split in SPLIT_FOLDERS.items():
        if name in found:
            splits.setdefault(split, found[name])
    return splits


def files_of_splits(
    path: Path | None, suffixes: Sequence[str], is_own: Callable[[Path], bool], limit: int | None = None
) -> list[tuple[Path, str]]:
    """Return the files of an export with their splits: a file, or those in a folder and in its folders of splits.

    Args:
        path: a file, which is "train" and is not checked; a folder; or None for no files.
        suffixes: of the files, such as ".json".
        is_own: returns whether a file with such a suffix belongs to the export.
        limit: maximum number of files of each suffix that are checked in each folder; None for no limit.
    """
    if path is None or path.is_file():
        return [] if path is None else [(path, "train")]
    folders = [(path, "train"), *((folder, split) for split, folder in split_folders(path).items())]
    files = [
        (file, split) for folder, split in folders for suffix in suffixes for file in files_in(folder, suffix)[:limit]
    ]
    return [(file, split) for file, split in files if is_own(file)]


def image_with_stem(path: Path) -> Path | None:
    """Return the existing image that has the path without a suffix, or None; suffixes may be in upper case."""
    suffixes = (form for suffix in IMAGE_SUFFIXES for form in (suffix, suffix.upper()))
    return next((image for suffix in suffixes if os.path.isfile(image := Path(f"{path}{suffix}"))), None)


def image_finder(source: Source) -> ImageFinder:
    """Return the finder for the folder that `--image_folder` names, by default for that of the existing dataset."""
    if source.image_folder is not None:
        return ImageFinder(find_image_folder(Path(source.data_root), source.image_folder))
    path = dataset_path(source)
    assert path is not None
    return ImageFinder(path if path.is_dir() else path.parent)


def read_file_name(value: Any, where: str) -> str:
    """Return the name or path of an image in an export.

    Args:
        value: the name.
        where: file, image and field, the prefix of the error message.

    Raises:
        BadRowError: the name is not text, is empty, or has several lines.
    """
    if not isinstance(value, str) or len(value.splitlines()) != 1:
        raise BadRowError(f"{where}: expected a file name, got {short(value)}; fix it")
    return value


def check_once(image: Path, where: str, seen: dict[Path, str]) -> None:
    """Check that an image was not labeled before.

    Args:
        image: path of the image.
        where: the file or entry that labels it.
        seen: the file or entry that labels each earlier image, keyed by the image's path; this image is added.

    Raises:
        BadRowError: another file or entry labels the image.
    """
    if image in seen:
        raise BadRowError(
            f"{where}: expected the labels of {image.name} in one place, got some in {seen[image]} as well; remove "
            "one of the two",
            "duplicate_id",
        )
    seen[image] = where


class ImageFinder:
    """Finds the images that an export names: by their path, or by their name alone if only one file has it.

    Exports often keep the path of an image on the machine or server where it was labeled.

    Args:
        folder: folder in which images are searched, with all subfolders. It is listed once, when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, near: Path | None = None) -> Path:
        """Return the path of an image; if it is not found, the path where it is expected.

        Args:
            name: name or path of the image in the export; backslashes separate folders, too.
            near: folder that the name is relative to, by default the folder of the finder.
        """
        name = name.replace("\\", "/")
        near = self.folder if near is None else Path(os.path.abspath(near))
        expected = Path(os.path.abspath(near / name))
        for path in (expected, Path(os.path.abspath(self.folder / name))):
            if os.path.isfile(path):  # False as well for names that the file system does not allow
                return path
        same = self.named(Path(name).name)
        return same[0] if len(same) == 1 else expected

    def named(self, name: str) -> list[Path]:
        """Return the image files in the folder that have this name, in any subfolder."""
        if self._by_name is None:
            self._by_name = {}
            for parent, folders, names in os.walk(self.folder):
                folders.sort()
                for entry in sorted(names):
                    if entry.lower().endswith(IMAGE_SUFFIXES):
                        self._by_name.setdefault(entry, []).append(Path(parent, entry))
        return self._by_name.get(name, [])

    def relative(self, file: Path) -> str:
        """Return the name of an image relative to the folder, with slashes; the complete path if it is outside."""
        return (file.relative_to(self.folder) if file.is_relative_to(self.folder) else file).as_posix()
