"""Pickles from strangers, read without running anything that stands in them."""

import io
import pickle
from pathlib import Path
from typing import Any


class _ForbiddenError(pickle.UnpicklingError):
    """The pickle asks for an import; to be told from mere damage."""


class _PlainUnpickler(pickle.Unpickler):
    """Admits what needs no import: lists, dicts, tuples, sets, strings, bytes, numbers, booleans and None."""

    def __init__(self, data: bytes, path: Path, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        raise _ForbiddenError(
            f"{self.path}: refused, the pickle asks for {module}.{name}: only plain containers are read, since "
            "anything else could run code; take the file from its original source"
        )


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle that holds plain containers only, written by Python 2 or 3.

    Python 2's byte strings become text: UTF-8, or Latin-1 where the file is not UTF-8.

    Raises:
        pickle.UnpicklingError: the pickle asks for a class or function; none was imported or called.
        ValueError: the file is no pickle, or is cut.
    """
    data = path.read_bytes()
    try:
        try:
            return _PlainUnpickler(data, path, "utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(data, path, "latin-1").load()
    except _ForbiddenError:
        raise
    except Exception as error:  # a damaged pickle fails in any way: EOFError, KeyError, IndexError, TypeError, ...
        raise ValueError(f"{path}: not a readable pickle ({error or 'cut short'}): fetch the file again") from error
