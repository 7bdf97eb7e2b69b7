"""The text of a metadata.jsonl, line by line, or of a metadata.json, item by item."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ....atomic import atomic_write_file
from ....safe_loading import parse_json
from .json_text import array_spans

_LINE_END = re.compile(r"\r\n|\n|\r")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass
class MetadataText:
    """A file of objects, as text.

    Args:
        text: the whole file, with its line ends.
        spans: start and end of each line, or of each item of a JSON array.
    """

    text: str
    spans: list[tuple[int, int]]

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yield number (from 1) and text of each line or item that is not blank."""
        for number, (start, end) in enumerate(self.spans, start=1):
            if self.text[start:end].strip():
                yield number, self.text[start:end]

    def find(self, number: int, version: str) -> int | None:
        """Return the current number of a line, which may have moved; None if its text changed.

        Args:
            number: its number when it was read.
            version: hash of its text; see `text_version`.
        """
        if 1 <= number <= len(self.spans) and text_version(self._line(number)) == version:
            return number
        same = [other for other, text in self.numbered() if text_version(text) == version]
        return same[0] if len(same) == 1 else None

    def with_line(self, number: int, line: str) -> str:
        """Return the whole text with another line or item."""
        start, end = self.spans[number - 1]
        return self.text[:start] + line + self.text[end:]

    def _line(self, number: int) -> str:
        start, end = self.spans[number - 1]
        return self.text[start:end]


def read_metadata(file: Path) -> MetadataText:
    """Read a metadata.jsonl or metadata.json.

    Raises:
        ValueError: it is not UTF-8, or a JSON array with an error.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected UTF-8 text, got other data ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    first = len(_BYTE_ORDER_MARK) if text.startswith(_BYTE_ORDER_MARK) else 0
    if text[first:].lstrip().startswith("[") and text.rstrip().endswith("]"):
        parse_json(text[first:], str(file))
        return MetadataText(text, [(first + start, first + end) for start, end in array_spans(text[first:])])
    ends = [(match.start(), match.end()) for match in _LINE_END.finditer(text)]
    starts = [first, *(end for _, end in ends)]
    return MetadataText(text, [*zip(starts, [*(start for start, _ in ends), len(text)], strict=True)])


def write_metadata(file: Path, text: str) -> None:
    """Replace the file atomically; it keeps its permissions, which other reviewers may need."""
    with atomic_write_file(file) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
        shutil.copymode(file, temporary)


def text_version(text: str) -> str:
    """Return a hash of the text of a line: an edit names the text that the reviewer saw."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
