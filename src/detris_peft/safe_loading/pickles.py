"""Pickles of plain values, such as REFER's references."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

from ..errors import one_line
from .limits import MAX_DEPTH, MAX_EXPANDED_CHARACTERS, MAX_EXPANDED_VALUES, MAX_PICKLE_BYTES, MIN_EXPANDED
from .pickle_reader import ForbiddenPickleError, PickleReader


def load_plain_pickle(path: str | os.PathLike) -> Any:
    """Load a pickle of plain containers, strings and numbers, written by Python 2 or 3.

    Every byte string of Python 2 becomes text by itself: UTF-8, or Latin-1 if it is not valid UTF-8. Files of
    protocol 0 whose line ends were converted to CRLF are read as well.

    Raises:
        FileNotFoundError: the file does not exist.
        pickle.UnpicklingError: the pickle imports a class or function; nothing was imported or called.
        ValueError: the file is not a pickle, is damaged, or exceeds the limits of `safe_loading.limits`.
    """
    path = Path(path)
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise ValueError(
            f"{path}: expected a pickle of at most {MAX_PICKLE_BYTES:,} bytes, got {path.stat().st_size:,}; pass "
            "another file."
        )
    data = path.read_bytes()
    collects = gc.isenabled()
    gc.disable()  # it would visit the growing result again and again
    try:
        value = PickleReader(data).load()
        check_expanded(value, len(data))
    except ForbiddenPickleError as error:
        raise ForbiddenPickleError(
            f"{path}: expected a pickle of plain containers, got one that {error}, which could run code; download the "
            "file from its original source."
        ) from None
    except ValueError as error:
        binary = data[:1] not in (b"(", b"]", b"}")  # a protocol 0 file starts with a container
        if binary and b"\n" in data and data.count(b"\n") == data.count(b"\r\n"):
            raise ValueError(
                f"{path}: expected a pickle, got one whose line ends were converted to CRLF ({one_line(error)}); "
                "download it again without conversion, such as FTP's text mode or git's autocrlf."
            ) from None
        raise ValueError(
            f"{path}: expected a pickle, got unreadable data ({one_line(error)}); download it again."
        ) from None
    finally:
        if collects:
            gc.enable()
    return value


def check_expanded(root: Any, num_bytes: int) -> None:
    """Check the size of a value with its shared parts expanded, as a walk or a `repr` would meet it.

    Args:
        root: value made of dicts, lists, tuples and sets.
        num_bytes: size of the file it was read from.

    Raises:
        ValueError: the value contains itself, is nested more than `MAX_DEPTH` levels deep, or expands to more values
            and characters than a file of this size can reasonably hold.
    """
    values = max(MIN_EXPANDED, MAX_EXPANDED_VALUES * num_bytes)
    characters = max(MIN_EXPANDED, MAX_EXPANDED_CHARACTERS * num_bytes)
    level = [root]
    for _ in range(MAX_DEPTH + 1):  # level by level, without recursion
        children: list[Any] = []
        for container in level:
            if isinstance(container, _CONTAINERS):
                children += container
                if isinstance(container, dict):
                    children += container.values()
                if len(children) > values:
                    raise ValueError("containers shared too often")
        if not children:
            return
        values -= len(children)
        characters -= sum([len(child) for child in children if type(child) in _TEXTS])
        if characters < 0:
            raise ValueError("text shared too often")
        level = [child for child in children if type(child) not in _TEXTS]
    raise ValueError(f"containers nested more than {MAX_DEPTH} levels deep")


_CONTAINERS = (dict, list, tuple, set, frozenset)
_TEXTS = {str, bytes}
