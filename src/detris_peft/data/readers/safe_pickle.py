"""Safe unpickler for untrusted files: plain containers only, nothing is imported or called."""

import io
import pickle
from pathlib import Path
from typing import Any


class _ForbiddenError(pickle.UnpicklingError):
    """The pickle requests an import; distinguishes an unsafe file from a damaged one."""


class _PlainUnpickler(pickle.Unpickler):
    """Accepts types that need no import: lists, dicts, tuples, sets, strings, bytes, numbers, booleans and None."""

    def __init__(self, data: bytes, path: Path, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        raise _ForbiddenError(
            f"{self.path}: expected a pickle of plain containers, got one that imports {module}.{name}, which could "
            "run code; download the file from its original source"
        )


def load_plain_pickle(path: Path) -> Any:
    """Load a pickle of plain containers, written by Python 2 or 3.

    Byte strings of Python 2 become text: UTF-8, or Latin-1 if the file is not valid UTF-8.

    Raises:
        pickle.UnpicklingError: the pickle requests a class or function; nothing was imported or called.
        ValueError: the file is not a pickle, or is truncated.
    """
    data = path.read_bytes()
    try:
        try:
            return _PlainUnpickler(data, path, "utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(data, path, "latin-1").load()
    except _ForbiddenError:
        raise
    except Exception as error:  # damaged pickles raise EOFError, KeyError, IndexError, TypeError, ...
        problem = error or "truncated"
        raise ValueError(f"{path}: expected a pickle, got unreadable data ({problem}); download it again") from error
