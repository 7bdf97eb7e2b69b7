"""Checkpoints of `torch.save`, and TorchScript archives: the index is checked before memory is allocated.

`torch.load(weights_only=True)` executes no code, but a file of some hundred bytes makes it allocate any amount of
memory or crash. It does not read TorchScript archives at all.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import one_line
from .archives import check_members, read_index
from .limits import MAX_INDEX_BYTES, MAX_OVERLAP
from .pickle_reader import ForbiddenPickleError
from .pickles import check_expanded
from .tensor_pickles import NUMPY_FUNCTIONS, ScriptModule, Storage, TensorEntry, TensorPickleReader

# A file of torch before 1.6 starts with a pickle of this number, and is a sequence of pickles and storages.
_LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def read_checkpoint(
    path: str | os.PathLike,
    expected: str,
    *,
    mmap: bool = False,
    scripted: bool = False,
    checksums: bool = True,
) -> dict[str, Any]:
    """Read the dict in a checkpoint file without executing code.

    Args:
        path: the file.
        expected: description of the expected file, for error messages.
        mmap: map the file into memory instead of reading it, if its format allows.
        scripted: also read the tensors of a TorchScript archive.
        checksums: compare the checksums in the file, for which it is read once.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, exceeds the limits of `safe_loading.limits`, imports something, or does not
            contain a dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file; check the path.")
    with path.open("rb") as stream:
        is_archive = stream.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a complete file, got a truncated one; copy or download it again.")
    try:
        content = _read_archive(path, mmap, scripted, checksums) if is_archive else _read_legacy(path)
    except ForbiddenPickleError as error:
        raise ValueError(
            f"{path}: expected a PyTorch checkpoint without pickled code, which is never executed, got one with other "
            f"objects than tensors, numbers and text ({one_line(error)}); save its state_dict alone, or pass another "
            "file."
        ) from None
    except Exception as error:  # corrupt files can raise any error in `torch.load` and `zipfile`
        raise ValueError(
            f"{path}: expected a PyTorch checkpoint without pickled code, which is never executed, "
            f"got a file that cannot be read ({one_line(error, first_line=True)[:300]}); download it again, or pass "
            "another file."
        ) from None
    if content is None:
        raise ValueError(
            f"{path}: expected {expected}, got a TorchScript archive, the format of OpenAI's CLIP files; pass another "
            "file."
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {expected}, got a {type(content).__name__}; pass another file.")
    return content


def _read_archive(path: Path, mmap: bool, scripted: bool, checksums: bool) -> Any:
    """Return the content of a zip file, or None for a TorchScript archive unless `scripted`."""
    with zipfile.ZipFile(path) as archive:
        is_script = any(Path(name).name == "constants.pkl" for name in archive.namelist())
        if is_script and not scripted:
            return None
        check_members(archive, path.stat().st_size, checksums)
        index, folder = read_index(archive)
        reader = TensorPickleReader(index, scripted=is_script)
        root = reader.load()
        check_expanded(root, len(index))
        for storage in reader.storages.values():
            available = archive.getinfo(f"{folder}data/{storage.key}").file_size
            if storage.nbytes > available:
                raise ValueError(f"a storage of {storage.nbytes:,} bytes in a member of {available:,}")
        _check_overlap(reader)
        if is_script:
            return _read_script(archive, folder, root)
    return _load(path, mmap)


def _read_legacy(path: Path) -> Any:
    """Return the content of a file of torch before 1.6."""
    with path.open("rb") as stream:
        start = stream.read(MAX_INDEX_BYTES)
    if not start.startswith(_LEGACY_START):
        raise ValueError("not a file of torch.save")
    reader, position = TensorPickleReader(start), len(_LEGACY_START)
    for _ in range(4):  # protocol, byte order and sizes of types, content, names of the storages
        check_expanded(reader.load(position), len(start))
        position = reader.position
    needed = sum(storage.nbytes for storage in reader.storages.values())
    available = path.stat().st_size - position
    if needed > available:
        raise ValueError(f"storages of {needed:,} bytes in a file with {available:,} bytes for them")
    _check_overlap(reader)
    return _load(path)


def _load(path: Path, mmap: bool = False) -> Any:
    try:
        with torch.serialization.safe_globals([(function, name) for name, function in NUMPY_FUNCTIONS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # torch's message advises to load the file without `weights_only`
        raise ValueError("opcodes that torch.save does not write") from None


def _check_overlap(reader: TensorPickleReader) -> None:
    """Raise a ValueError if tensors share memory so often that copying them takes much more than the file's size."""
    available = sum(storage.nbytes for storage in reader.storages.values())
    if reader.nbytes > MAX_OVERLAP * available:
        raise ValueError(f"tensors of {reader.nbytes:,} bytes in storages of {available:,}")


def _read_script(archive: zipfile.ZipFile, folder: str, root: Any) -> dict[str, torch.Tensor]:
    """Return the `state_dict` of a TorchScript archive."""
    if not isinstance(root, ScriptModule):
        raise ValueError("a value that is not a module")
    storages: dict[Storage, torch.Tensor] = {}
    tensors = {}
    for name, entry in _entries(root):
        storage = entry.storage
        if storage not in storages:
            data = bytearray(archive.read(f"{folder}data/{storage.key}"))
            empty = torch.empty(0, dtype=storage.dtype)
            storages[storage] = torch.frombuffer(data, dtype=storage.dtype, count=storage.numel) if data else empty
        tensors[name] = storages[storage].as_strided(entry.size, entry.stride, entry.offset)
    return tensors


def _entries(module: ScriptModule, prefix: str = "") -> Iterator[tuple[str, TensorEntry]]:
    """Yield the tensors of a module under their keys. `check_expanded` bounds the recursion."""
    for name, value in module.items():
        if isinstance(value, TensorEntry):
            yield prefix + name, value
        elif isinstance(value, ScriptModule):
            yield from _entries(value, f"{prefix}{name}.")
