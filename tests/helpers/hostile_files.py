"""Checkpoints whose index a test writes by hand, opcode by opcode."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

FLOATS = b"ctorch\nFloatStorage\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
MODULE = b"c__torch__.m\nModule\n"


def tensor(
    numel: int = 4,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    key: str = "0",
    storage: bytes = FLOATS,
) -> bytes:
    """Return the opcodes of a tensor."""
    persistent = b"(" + text("storage") + storage + text(key) + text("cpu") + integer(numel) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    return TENSOR + b"(" + persistent + integer(offset) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def dictionary(*items: bytes) -> bytes:
    """Return the opcodes of a dict: keys and values in turn."""
    return b"}(" + b"".join(items) + b"u"


def module(*items: bytes) -> bytes:
    """Return the opcodes of a TorchScript module with these attributes."""
    return MODULE + b")\x81" + dictionary(*items) + b"b"


def write_archive(
    file: Path, index: bytes, *, scripted: bool = False, compression: int = zipfile.ZIP_STORED, **data: bytes
) -> Path:
    """Write an archive with this index and these storages, `data_0=...`; default: one of four floats."""
    members = {"archive/data.pkl": b"\x80\x02" + index + b".", "archive/version": b"3\n"}
    if scripted:
        members["archive/constants.pkl"] = b"\x80\x02)."
    for name, content in (data or {"data_0": struct.pack("<4f", 1, 2, 3, 4)}).items():
        members[f"archive/data/{name.removeprefix('data_')}"] = content
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file
