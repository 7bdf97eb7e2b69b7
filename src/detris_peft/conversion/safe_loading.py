"""Load untrusted checkpoint files without executing code.

`torch.load(weights_only=True)` does not support TorchScript archives; these are read by an unpickler that supports
only tensors and the containers around them.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import one_line


def detect_kind(content: Mapping[str, Any]) -> str:
    """Return what a checkpoint contains, judging by its keys; empty if unknown."""
    if "state_dict" in content:
        return "a training checkpoint"
    if {"cls_token", "pos_embed"} <= content.keys():
        return "a DINO backbone"
    return "a CLIP" if {"token_embedding.weight", "text_projection"} <= content.keys() else ""


def read_dict(path: Path, expected: str, *, mmap: bool = False, scripted: bool = False) -> dict[str, Any]:
    """Read the dict in a checkpoint file.

    Args:
        path: the file.
        expected: description of the expected file, for error messages.
        mmap: map the file into memory instead of reading it, if its format allows.
        scripted: also read the tensors of a TorchScript archive.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or does not contain a dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file; check the path.")
    with path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if starts_as_zip and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a complete file, got a truncated one; copy or download it again.")
    if starts_as_zip:
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                if scripted:
                    return _read_torchscript(archive, path)
                raise ValueError(
                    f"{path}: expected {expected}, got a TorchScript archive, the format of OpenAI's CLIP files; "
                    "pass another file."
                )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and starts_as_zip)
    except Exception as error:  # corrupt files can raise any error
        raise ValueError(
            f"{path}: expected a PyTorch checkpoint without pickled code, which is never executed, "
            f"got a file that cannot be read ({one_line(error, first_line=True)}); pass another file."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {expected}, got a {type(content).__name__}; pass another file.")
    return content


class _ScriptModule:
    """Replaces every class of a TorchScript archive. It only stores attributes."""


class _TorchScriptUnpickler(pickle.Unpickler):
    """Unpickler that allows modules (as `_ScriptModule`), tensors and lists of numbers, and rejects anything else."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptModule
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        allowed = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "collections.OrderedDict": collections.OrderedDict,
            "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
            "torch.jit._pickle.build_intlist": list,
            "torch.jit._pickle.build_doublelist": list,
            "torch.jit._pickle.build_boollist": list,
            "torch.jit._pickle.build_tensorlist": list,
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return allowed[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, numel = pid
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)  # raises if the storage is too small


def _read_torchscript(archive: zipfile.ZipFile, path: Path) -> dict[str, torch.Tensor]:
    """Read the `state_dict` of a TorchScript archive. Its code is never executed."""
    try:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        root = _TorchScriptUnpickler(archive, name).load()
        return dict(_tensors_of(root))
    except Exception as error:  # corrupt files can raise any error
        raise ValueError(
            f"{path}: expected an intact TorchScript archive of nothing but tensors, got a file that cannot be read "
            f"({one_line(error, first_line=True)}); download it again."
        ) from None


def _tensors_of(module: _ScriptModule, prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _tensors_of(value, f"{prefix}{name}.")
