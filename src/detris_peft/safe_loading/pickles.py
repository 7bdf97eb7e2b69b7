"""Pickles of plain values, such as REFER's references."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import one_line
from .limits import MAX_DEPTH, MAX_EXPANSION, MAX_PICKLE_BYTES, MIN_EXPANDED
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
    limit = max(MIN_EXPANDED, MAX_EXPANSION * num_bytes)
    done: dict[int, tuple[int, int]] = {}  # id → expanded size and depth
    opened: set[int] = set()  # the path from the root
    pending = [root] if isinstance(root, _CONTAINERS) else []
    while pending:
        value = pending[-1]
        if id(value) in done:
            pending.pop()
            continue
        children = value.values() if isinstance(value, dict) else value
        inner = [child for child in children if isinstance(child, _CONTAINERS)]
        waiting = [child for child in inner if id(child) not in done]
        if waiting:
            opened.add(id(value))
            if len(opened) >= MAX_DEPTH or any(id(child) in opened for child in waiting):
                raise ValueError(f"containers nested more than {MAX_DEPTH} levels deep")
            pending += waiting
            continue
        size = 1 + len(value) + sum(len(child) for child in children if type(child) in _TEXTS)
        size += sum(len(key) for key in value if type(key) in _TEXTS) if isinstance(value, dict) else 0
        size += sum(done[id(child)][0] for child in inner)
        depth = 1 + max((done[id(child)][1] for child in inner), default=0)
        if size > limit or depth > MAX_DEPTH:
            raise ValueError(f"containers nested more than {MAX_DEPTH} levels deep, or shared too often")
        opened.discard(id(value))
        done[id(value)] = (size, depth)
        pending.pop()


_CONTAINERS = (dict, list, tuple, set, frozenset)
_TEXTS = {str, bytes}
