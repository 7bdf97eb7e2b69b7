"""The files of a prediction job, which is continued after a kill: JSON Lines in the order of the rows.

Layout for the output `DIR` (for the output `x.jsonl`, the names in parentheses):

- `predictions.jsonl` (`x.jsonl`): a record per predicted row;
- `errors.jsonl` (`x_errors.jsonl`): a record per row that cannot be predicted; missing without such rows;
- `job.json` (`x_job.json`): the fingerprint, everything that the results depend on;
- `.predictions.jsonl.parts/` (`.x.jsonl.parts/`): results of each rank, until they are merged.

A batch is the rows `k * batch_size` to `(k + 1) * batch_size - 1`. Its errors are written before its predictions, each
with one call, so the rows that are done can be derived from the two files. Whatever is there of an incomplete batch is
dropped when a job continues.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ..atomic import atomic_write_file, write_json
from ..locks import try_lock
from ..outputs import MARKER, check_output_file, check_output_folder, mark_folder
from ..safe_loading import parse_json, read_json
from .row_predictor import SAVED, RowResult, unwritable

KIND = "predictions"  # of the folder, for `mark_folder`
JSON_LINES = ".jsonl"


class JobFiles:
    """Paths of a job, and the rules for what it may replace.

    Args:
        output: a folder, or a file that ends with .jsonl.
    """

    def __init__(self, output: str | os.PathLike) -> None:
        self.output = Path(output)
        ends_as_folder = os.fspath(output).endswith(("/", os.sep))
        self.is_folder = self.output.suffix.lower() != JSON_LINES or ends_as_folder or self.output.is_dir()
        if self.is_folder:
            self.predictions = self.output / "predictions.jsonl"
            self.errors, self.state = self.output / "errors.jsonl", self.output / "job.json"
        else:
            self.predictions = self.output
            self.errors, self.state = (
                self.output.with_name(f"{self.output.stem}_{name}") for name in ("errors.jsonl", "job.json")
            )
        self.parts = self.predictions.with_name(f".{self.predictions.name}.parts")

    def part(self, rank: int) -> Path:
        """Return the file for the results of a rank."""
        return self.parts / f"rank-{rank:05d}.jsonl"

    def check(self, inputs: Iterable[str | os.PathLike], overwrite: bool, resume: bool) -> None:
        """Raise a ValueError if the job must not write its files.

        Args:
            inputs: files that the job reads; they are never replaced.
            overwrite: replace the files of another job.
            resume: continue the job that wrote them.
        """
        self._check_inputs(inputs)
        if resume and not self.state.exists() and any(map(_size, (self.predictions, self.errors))):
            raise ValueError(
                f"--resume: expected {self.state} of an interrupted job next to {self.predictions}, found none; add "
                "--overwrite instead to start again, or choose another name."
            )
        if self.is_folder:
            if not (self._is_new() and (self.output / MARKER).exists()):
                otherwise = "--resume to continue it"
                check_output_folder(self.output, overwrite or resume, otherwise=otherwise, kind=KIND)
            return
        for file in (self.predictions, self.errors, self.state):
            check_output_file(file, overwrite or resume)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other jobs that write the same results.

        Raises:
            OSError: another process holds the lock, or the results cannot be written.
        """
        with self._explained():
            self.predictions.parent.mkdir(parents=True, exist_ok=True)
            if self.is_folder and self._is_new():
                mark_folder(self.output, KIND)
            stream = self.predictions.open("ab")
        with stream:
            if try_lock(stream.fileno()) is False:
                raise OSError(
                    f"{self.predictions}: another process is writing to it; wait for it, or choose another output."
                )
            yield

    def start(self, fingerprint: dict[str, Any]) -> None:
        """Create the files of a new job; those of an older one are removed."""
        with self._explained():
            # In an order in which a kill in between leaves a job that can be continued.
            self.predictions.write_bytes(b"")  # not replaced by another file, because it is locked
            self.errors.unlink(missing_ok=True)
            shutil.rmtree(self.parts, ignore_errors=True)
            if self.is_folder:
                for name in SAVED.values():
                    shutil.rmtree(self.output / name, ignore_errors=True)
            write_json(self.state, fingerprint)

    def continues(self) -> bool:
        """Return whether there is a job to continue."""
        return self.state.is_file() and self.predictions.is_file()

    def check_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Raise a ValueError that names what differs if the interrupted job was another one."""
        stored = read_json(self.state)
        stored = stored if isinstance(stored, dict) else {}
        for name, value in fingerprint.items():
            if name == "checkpoint" or stored.get(name) == value:  # the checkpoint may have been moved
                continue
            what, expected, got = name.replace("_", " "), repr(stored.get(name)), repr(value)
            if name == "weights_sha256":
                what, expected, got = "checkpoint", f"the weights of {stored.get('checkpoint')}", "others"
            elif name == "rows_sha256":
                what, expected, got = "rows", "the same images and texts", "others"
            raise ValueError(
                f"--resume {self.output}: {what}: expected {expected:.200}, as in the interrupted job, got "
                f"{got:.200}; pass what it was started with, or start again with --overwrite."
            )

    def truncate(self, rows: int, batch_size: int) -> int:
        """Drop what was written of an incomplete batch; return the number of rows that are done.

        Args:
            rows: number of rows of the job.
            batch_size: rows per batch.
        """
        failed = {_row_of(line, self.errors) for line in _lines(self.errors)}
        predicted = sum(1 for _ in _lines(self.predictions))
        done = 0
        while done < rows and (done in failed or predicted > 0):
            predicted -= done not in failed
            done += 1
        if done < rows:
            done -= done % batch_size
        earlier = sum(row < done for row in failed)
        with self._explained():
            _keep_lines(self.predictions, done - earlier)
            _keep_lines(self.errors, earlier)
        return done

    def consolidate(self, start: int, rows: int, batch_size: int) -> set[int]:
        """Rewrite the parts of an interrupted job on several ranks as one file; return its batches.

        Args:
            start: number of rows that are done without them.
            rows, batch_size: as for `truncate`.
        """
        batches = set()
        if start >= rows:
            shutil.rmtree(self.parts, ignore_errors=True)
        if not self.parts.is_dir():
            return batches
        files = sorted(self.parts.glob("*.jsonl"))
        with self._explained(), atomic_write_file(self.parts / "done.jsonl") as done, done.open("wb") as stream:
            for batch, group in groupby(_merged(files), lambda item: item[0] // batch_size):
                lines = [line for _, line in group]
                first = batch * batch_size
                if first >= start and len(lines) == min(batch_size, rows - first):
                    stream.writelines(lines)
                    batches.add(batch)
        if not batches:
            shutil.rmtree(self.parts, ignore_errors=True)
        for file in files:
            if file.name != "done.jsonl":
                file.unlink(missing_ok=True)
        return batches

    def merge(self, start: int, rows: int) -> None:
        """Append the parts of all ranks to the results, in the order of the rows, and remove them.

        Raises:
            ValueError: a row is missing, because another job changed the parts.
        """
        expected = start
        with (
            self._explained(),
            atomic_write_file(self.predictions) as predictions,
            atomic_write_file(self.errors) as errors,
            predictions.open("wb") as predicted,
            errors.open("wb") as failed,
        ):
            for stream, file in ((predicted, self.predictions), (failed, self.errors)):
                stream.writelines(_lines(file))
            for row, line in _merged(sorted(self.parts.glob("*.jsonl"))):
                if row != expected:
                    break
                kind, record = line.split(b" ", 2)[1:]
                (failed if kind == b"e" else predicted).write(record)
                expected += 1
            if expected != rows:
                raise ValueError(
                    f"{self.parts}: expected row {expected + 1} of {rows}, found none; another process changed the "
                    "files: continue with --resume."
                )
        if not self.errors.stat().st_size:
            self.errors.unlink()
        shutil.rmtree(self.parts, ignore_errors=True)

    def failures(self) -> Iterator[dict[str, Any]]:
        """Yield the records of the rows that could not be predicted."""
        return map(json.loads, _lines(self.errors))

    def _is_new(self) -> bool:
        """Return whether the folder holds nothing but a marker that a kill or a full disk left empty."""
        names = [path.name for path in self.output.iterdir()] if self.output.is_dir() else None
        return names == [] or (names == [MARKER] and not _size(self.output / MARKER))

    def _check_inputs(self, inputs: Iterable[str | os.PathLike]) -> None:
        folder = os.path.realpath(self.output) + os.sep
        written = {_file_id(file) for file in (self.predictions, self.errors, self.state)} - {None}
        if not written and not (self.is_folder and self.output.is_dir()):
            return
        for name in dict.fromkeys(inputs):
            if _file_id(name) in written or (self.is_folder and os.path.realpath(name).startswith(folder)):
                raise ValueError(
                    f"--output {self.output}: expected another path than that of the input {os.fspath(name)}; choose "
                    "another one."
                )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(error, error.filename or self.output) from None


class ResultWriter:
    """Appends the results of complete batches. A file that cannot be written keeps its complete lines.

    Args:
        files: the files of the job.
        rank: writes to the part of this rank; None: to the results themselves.
    """

    def __init__(self, files: JobFiles, rank: int | None = None) -> None:
        self.files = files
        self.rank = rank
        if rank is not None:
            files.parts.mkdir(exist_ok=True)
        self.file = files.predictions if rank is None else files.part(rank)
        self._stream = open(self.file, "ab", buffering=0)  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, results: Sequence[RowResult]) -> None:
        """Append the results of a batch: its errors, then its predictions."""
        if self.rank is not None:
            lines = [f"{result.row} {'e' if result.failed else 'p'} {result.line}" for result in results]
            return _append(self._stream, lines, self.file)
        if failed := [result.line for result in results if result.failed]:
            with open(self.files.errors, "ab", buffering=0) as stream:
                _append(stream, failed, self.files.errors)
        _append(self._stream, [result.line for result in results if not result.failed], self.file)


def _append(stream: Any, lines: Sequence[str], file: Path) -> None:
    """Append lines to an unbuffered file, all or none of them unless the process is killed."""
    start = os.fstat(stream.fileno()).st_size
    content = memoryview("".join(f"{line}\n" for line in lines).encode())
    try:
        while content:
            content = content[stream.write(content) :]
    except BaseException as error:
        stream.truncate(start)
        if isinstance(error, OSError):
            raise unwritable(error, file) from None
        raise


def _lines(file: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file; nothing if there is no such file."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield line


def _row_of(line: bytes, file: Path) -> int:
    """Return the row of an error, from 0."""
    record = parse_json(line.decode(errors="replace"), str(file))
    row = record.get("row") if isinstance(record, dict) else None
    if not isinstance(row, int):
        raise ValueError(
            f"{file}: expected rows as this job wrote them, got {line!r:.80}; restore the file, or start again with "
            "--overwrite."
        )
    return row - 1


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _file_id(file: str | os.PathLike) -> tuple[int, int] | None:
    """Return what all names of a file have in common, links included; None if there is no such file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _keep_lines(file: Path, number: int) -> None:
    """Truncate a file to its first lines."""
    size = sum(map(len, islice(_lines(file), number)))
    if file.exists() and file.stat().st_size > size:
        os.truncate(file, size)


def _merged(files: Sequence[Path]) -> Iterator[tuple[int, bytes]]:
    """Yield the row and the line of each result in sorted parts, by row; a repeated row only once."""
    streams = [((int(line.split(b" ", 1)[0]), line) for line in _lines(file)) for file in files]
    last = -1
    for row, line in heapq.merge(*streams, key=lambda item: item[0]):
        if row > last:
            yield row, line
        last = row
