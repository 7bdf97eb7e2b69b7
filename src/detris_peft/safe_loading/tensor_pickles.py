"""Index of a checkpoint: the pickle that says where each tensor is, read without creating tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .limits import MAX_TENSOR_DIMENSIONS
from .pickle_reader import ForbiddenPickleError, PickleReader
from .pickle_values import printable

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


@dataclass(frozen=True)
class Storage:
    """Memory that tensors share.

    Attributes:
        dtype: type of its elements.
        key: its name in the archive.
        numel: number of elements.
    """

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a checkpoint: a view of a storage, inside its bounds."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class ScriptModule(dict):
    """A module of a TorchScript archive, reduced to its attributes."""


class _OrderedDict(dict):
    """Represents `collections.OrderedDict`, whose state may be set."""


class _Opaque:
    """Represents a value without tensors that the conversion does not use, such as a device."""


class NumpyType:
    """Represents a type of NumPy, such as that of the best score in a checkpoint."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order and size."""


class TensorPickleReader(PickleReader):
    """Reader for the pickles of `torch.save` and, with `scripted`, `torch.jit.save`.

    Tensors become `TensorEntry`. The sizes of storages that they refer to are in `storages`.

    Args:
        data: the pickle.
        scripted: allow the modules and lists of TorchScript instead of optimizers and devices.
    """

    def __init__(self, data: Any, scripted: bool = False) -> None:
        super().__init__(data)
        self.storages: dict[str, Storage] = {}
        self.nbytes = 0  # of all tensors
        self._scripted = scripted
        self._functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "collections.OrderedDict": _ordered_dict,
            **(_SCRIPT_FUNCTIONS if scripted else _FUNCTIONS),
        }

    def find_global(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if self._scripted and module.startswith("__torch__"):
            return ScriptModule
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if full_name in self._functions:
            return self._functions[full_name]
        if not self._scripted and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return _Opaque()
        raise ForbiddenPickleError(f"{printable(full_name)} is not allowed")

    def call(self, function: Any, arguments: tuple) -> Any:
        if function is ScriptModule and not arguments:
            return ScriptModule()
        if not any(function is allowed for allowed in self._functions.values()):
            raise ForbiddenPickleError("calls a value that is not an allowed function")
        return function(*arguments)

    def build(self, instance: Any, state: Any) -> None:
        if type(instance) is NumpyType:
            return
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ForbiddenPickleError("sets a state that is not a dict")
        if type(instance) is ScriptModule:
            instance.update(state)
        # PyTorch stores the version of each module in `_metadata`. Other attributes could replace methods of the dict.
        elif not (isinstance(instance, _OrderedDict) and state.keys() <= {"_metadata"}):
            raise ForbiddenPickleError(f"sets the attributes of a {type(instance).__name__}")

    def find_persistent(self, identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise ForbiddenPickleError("refers to other objects than storages")
        _, dtype, key, _, numel, *view = identifier
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError("a storage whose type, name or size is invalid")
        if view and view[0] is not None:
            raise ValueError("a view of a storage, a format of very old versions of PyTorch")
        storage = Storage(dtype, key, numel)
        known = self.storages.setdefault(key, storage)
        if known.nbytes != storage.nbytes:
            raise ValueError(f"two sizes of storage {key[:80]!r}")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorEntry:
        """Return a view of a storage. A stride of 0 would make a large tensor of a small one, and is refused."""
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise ValueError("a tensor without storage, size or stride")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > MAX_TENSOR_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor with a negative size")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        numel = math.prod(size)
        if numel > storage.numel or (numel and last >= storage.numel):
            raise ValueError(f"a tensor of {numel:,} elements in a storage of {storage.numel:,}, {storage.key[:80]!r}")
        self.nbytes += numel * storage.dtype.itemsize
        return TensorEntry(storage, offset, size, stride)


def _ordered_dict(items: Any = ()) -> _OrderedDict:
    if not all(isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) for item in items):
        raise ValueError("an OrderedDict of other items than keys and values")
    return _OrderedDict((key, value) for key, value in items)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _opaque(*_: Any) -> _Opaque:
    return _Opaque()


def _ignored(*_: Any) -> None:
    """Represent a number of NumPy, which the conversion does not use."""


def _encode(text: Any, encoding: Any) -> bytes:
    """Return bytes, which `torch.save` stores as text. Other encodings may run other code."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ForbiddenPickleError("calls _codecs.encode with another encoding than latin1")
    return text.encode("latin1")


def _counter(counts: Any) -> dict:
    if not isinstance(counts, dict):  # other items would be hashed by torch, however deeply they are nested
        raise ValueError("a Counter of another value than a dict")
    return dict(counts)


def _integers(*values: Any) -> tuple:
    return tuple(*values)


def _tagged(value: Any, tag: Any) -> Any:
    return value


def _list(values: Any) -> list:
    if not isinstance(values, list):
        raise ValueError("a list made of another value")
    return values


# Replace functions and classes of NumPy by their full names, here and in `torch.load`.
NUMPY_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray.scalar": _ignored,
    "numpy._core.multiarray.scalar": _ignored,
    "numpy.dtype": NumpyType,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **NUMPY_FUNCTIONS,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_meta_tensor_no_storage": _opaque,
    "collections.Counter": _counter,
    "torch.device": _opaque,
    "torch.Size": _integers,
}
_SCRIPT_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "torch.device": _opaque,
    "torch.jit._pickle.restore_type_tag": _tagged,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
}
