"""A folder with metadata.jsonl that several reviewers may edit at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ....errors import one_line
from ....locks import lock_folder
from ...errors import BadRowError, collect_notices, join_names
from ...masks import decode_mask
from ...readers import find_reader
from ...readers.folder import FolderReader, line_name, metadata_files, read_object, read_target
from ...readers.registry import dataset_folder
from ...schema import open_image
from ...sources import DataSource
from .line_edits import LineEdit, SentenceEdit, edit_line, is_flagged
from .metadata_text import read_metadata, text_version, write_metadata


class ChangedLineError(ValueError):
    """Error for an edit of a line whose text is no longer the one that the reviewer saw."""


@dataclass(frozen=True)
class ReviewLine:
    """One object of a metadata file.

    Args:
        file: the file, relative to the folder of the dataset.
        number: number of its line, or of its item in a JSON array.
        text: its text.
        split: its split.
        bad_mask: whether its mask is flagged.
    """

    file: str
    number: int
    text: str
    split: str
    bad_mask: bool

    @property
    def version(self) -> str:
        """Hash of the text."""
        return text_version(self.text)


class ReviewFolder:
    """The objects of a folder with metadata.jsonl. Every edit re-reads the file, changes one line, and writes it.

    Several threads and processes may edit the same folder.

    Args:
        source: the dataset.
        splits: the splits to review; None reviews all.
        allow_outside: also show images and masks that are not in the folder of the dataset.

    Raises:
        FileNotFoundError, ValueError: the dataset is not such a folder, a split does not exist, or a file cannot be
            read.
        PermissionError: the folder cannot be written.
    """

    def __init__(self, source: DataSource, splits: Sequence[str] | None = None, allow_outside: bool = False) -> None:
        reader = find_reader(source)
        if reader is not None and not isinstance(reader, FolderReader):
            raise ValueError(
                f"--dataset {source.dataset}: expected a folder with metadata.jsonl, got {reader.accepts}; write one "
                "with `detris data describe` if its objects have no sentences, else with `detris data split`."
            )
        found = source.splits()
        unknown = [split for split in splits or () if split not in found]
        if unknown:
            raise ValueError(
                f"--splits {unknown[0]}: expected splits of {source.dataset} ({join_names(found)}), got another name; "
                "fix it."
            )
        self.root = dataset_folder(source)
        self.splits = [split for split in found if splits is None or split in splits]
        self.allow_outside = allow_outside
        files = [(Path(os.path.realpath(file)), file, default) for file, default in metadata_files(self.root)]
        for target, file, _ in files:
            if not os.access(target.parent, os.W_OK | os.X_OK) or not os.access(target, os.W_OK):
                raise PermissionError(f"{file}: expected a file that can be edited, got no permission; change it.")
        self._files = {file.relative_to(self.root).as_posix(): (target, default) for target, file, default in files}
        self._read: dict[str, tuple[tuple[int, ...], list[ReviewLine], list[str]]] = {}

    def lines(self) -> list[ReviewLine]:
        """Return the objects in the order of the files; files that have changed are read again.

        Raises:
            OSError, ValueError: a file cannot be read.
        """
        lines = [line for name in self._files for line in self._current(name)[0]]
        return [line for line in lines if line.split in self.splits]

    def unreadable(self) -> list[str]:
        """Return a message for each line that is not a JSON object; such lines are kept as they are."""
        return [message for name in self._files for message in self._current(name)[1]]

    def edit(
        self, file: str, number: int, version: str, sentences: Sequence[SentenceEdit], bad_mask: bool
    ) -> tuple[ReviewLine, LineEdit]:
        """Change one object and save the file.

        Args:
            file, number, version: the object as the reviewer saw it.
            sentences: all sentences of the object after the edit; see `edit_line`.
            bad_mask: whether its mask is bad.

        Returns:
            The object after the edit, and what was saved.

        Raises:
            ChangedLineError: the line has another text by now; nothing is written.
            ValueError: the file is unknown, or the edit is not valid; see `edit_line`.
            OSError: the file cannot be written; it keeps its content.
        """
        target, default = self._file(file)
        with lock_folder(target.parent):
            content = read_metadata(target)
            current = content.find(number, version)
            if current is None:
                raise ChangedLineError(
                    f"{file} line {number}: changed by another reviewer or program in the meantime; check it again."
                )
            start, end = content.spans[current - 1]
            text = content.text[start:end]
            result = edit_line(text, sentences, bad_mask, line_name(self.root / file, current))
            if result.text != text:
                try:
                    write_metadata(target, content.with_line(current, result.text))
                except OSError as error:
                    raise OSError(
                        f"{file}: cannot be written ({error.strerror or error}); free disk space, or allow writing."
                    ) from None
        return self._line(file, current, result.text, default), result

    def content(self, line: ReviewLine) -> dict[str, Any]:
        """Return the JSON object of a line."""
        return read_object(line.text, self._where(line))

    def image_and_mask(self, line: ReviewLine) -> tuple[Image.Image, np.ndarray]:
        """Return the upright image of an object, and its mask (H, W), without foreground if there is no target.

        Raises:
            BadRowError: the image or the mask is missing, cannot be read, or is not in the folder of the dataset.
        """
        folder = (self.root / line.file).parent
        with collect_notices() as notices:
            image, mask = read_target(self.content(line), folder, self.root, self._where(line))
        outside = [message for kind, message in notices if kind == "file_outside"]
        if outside and not self.allow_outside:
            raise BadRowError(outside[0].replace("`detris data convert`", "`detris data review`"))
        return open_image({"path": str(image), "bytes": None}), decode_mask(mask)

    def _current(self, name: str) -> tuple[list[ReviewLine], list[str]]:
        target, default = self._file(name)
        status = target.stat()
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        read = self._read.get(name)
        if read is None or read[0] != signature:
            known = {line.text: line for line in read[1]} if read else {}
            lines, messages = [], []
            for number, text in read_metadata(target).numbered():
                try:
                    # Parsing takes most of the time, and an edit changes one line.
                    same = known.get(text)
                    lines.append(
                        self._line(name, number, text, default)
                        if same is None
                        else ReviewLine(name, number, text, same.split, same.bad_mask)
                    )
                except BadRowError as error:
                    messages.append(one_line(error))
            # A file that is replaced between the two steps is read again the next time.
            self._read[name] = read = (signature, lines, messages)
        return read[1], read[2]

    def _line(self, name: str, number: int, text: str, default: str) -> ReviewLine:
        content = read_object(text, line_name(self.root / name, number))
        return ReviewLine(name, number, text, content.get("split") or default, is_flagged(content))

    def _file(self, name: str) -> tuple[Path, str]:
        if not isinstance(name, str) or name not in self._files:
            raise ValueError(f"file: expected one of {join_names(self._files)}, got another one; reload the page.")
        return self._files[name]

    def _where(self, line: ReviewLine) -> str:
        return line_name(self.root / line.file, line.number)
