"""Files from strangers, read without running anything that stands in them.

What `torch.load(weights_only=True)` cannot read, TorchScript archives, is read by an unpickler that knows tensors and
nothing else.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


def kind_of(content: Mapping[str, Any]) -> str:
    """What a file's content is, as far as its keys tell."""
    if "state_dict" in content:
        return "a training checkpoint"
    if {"cls_token", "pos_embed"} <= content.keys():
        return "a DINO backbone"
    return "a CLIP" if {"token_embedding.weight", "text_projection"} <= content.keys() else ""


def read_dict(path: Path, needed: str, *, mmap: bool = False, scripted: bool = False) -> dict[str, Any]:
    """The dict in a file; with `scripted`, a TorchScript archive's tensors too."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    with path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if starts_as_zip and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated: copy or download it again.")
    if starts_as_zip:
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                if scripted:
                    return _read_torchscript(archive, path)
                raise ValueError(f"{path} is a TorchScript archive, as OpenAI publishes CLIP, needed is {needed}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and starts_as_zip)
    except Exception as error:  # bytes of any kind end in any kind of error
        raise ValueError(
            f"{path} is no PyTorch checkpoint, or one with pickled code in it, which is never run: {first_line(error)}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: needed is {needed}.")
    return content


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _ScriptModule:
    """Stands for every class of a TorchScript archive: it takes attributes and does nothing."""


class _TorchScriptUnpickler(pickle.Unpickler):
    """Admits modules (as `_ScriptModule`), tensors and lists of numbers; whatever else is asked for is refused."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptModule
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "collections.OrderedDict": collections.OrderedDict,
            "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
            "torch.jit._pickle.build_intlist": list,
            "torch.jit._pickle.build_doublelist": list,
            "torch.jit._pickle.build_boollist": list,
            "torch.jit._pickle.build_tensorlist": list,
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[f"{module}.{name}"]

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
    return storage.as_strided(size, stride, offset)  # which checks that the storage is large enough


def _read_torchscript(archive: zipfile.ZipFile, path: Path) -> dict[str, torch.Tensor]:
    """The `state_dict` of a TorchScript archive. Its code is not even looked at."""
    try:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        root = _TorchScriptUnpickler(archive, name).load()
        return dict(_tensors_of(root))
    except Exception as error:  # bytes of any kind end in any kind of error
        raise ValueError(
            f"{path} is a damaged TorchScript archive, or one that holds more than tensors, which is not read: "
            f"{first_line(error)}"
        ) from None


def _tensors_of(module: _ScriptModule, prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _tensors_of(value, f"{prefix}{name}.")
