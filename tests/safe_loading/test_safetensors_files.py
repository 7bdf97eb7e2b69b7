"""safetensors files: the header must fit the file before tensors are read."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from detris_peft.safe_loading import check_safetensors, read_safetensors


def write(file, header: Any, data: bytes = b"", length: int | None = None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return file


def entry(dtype: str = "F32", shape: Any = (3,), offsets: Any = (0, 12)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_tensors_are_read(tmp_path):
    tensors = {"a": torch.randn(2, 3), "b.c": torch.arange(3), "empty": torch.zeros(0, 2), "scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    loaded = read_safetensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"", b"", 2**60, "a header of 1,152,921,504,606,846,976 bytes in 8 bytes"),
        (entry(), bytes(12), 10**6, "a header of 1,000,000 bytes"),
        (entry(), bytes(11), None, "no valid shape and offsets for tensor 'a'"),
        (entry(), bytes(13), None, "header"),
        (entry(shape=[4]), bytes(12), None, "header"),
        (entry(shape=[3] * 1000), bytes(12), None, "no valid shape"),
        (entry(shape=[0, 10**18, 10**18], offsets=[0, 0]), b"", None, "expected a complete safetensors file"),
        (entry(shape=[-3]), bytes(12), None, "no valid shape"),
        (entry(shape=3), bytes(12), None, "no valid shape"),
        (entry(offsets=[12, 0]), bytes(12), None, "no valid shape and offsets"),
        (entry(offsets=[0, 10**12]), bytes(12), None, "no valid shape and offsets"),
        (entry(offsets=None), bytes(12), None, "no valid shape and offsets"),
        (entry(dtype="F99"), bytes(12), None, "unknown variant"),
        ({"a": 1}, b"", None, "no valid shape"),
        ([1, 2], b"", None, "not a JSON object"),
        (b"[" * 50_000, b"", None, "nested too deeply"),
        (b"{", b"", None, "expected JSON"),
        (b"\xff\xfe", b"", None, "not UTF-8"),
        (b'{"a": 1, "a": 2}', b"", None, "the key 'a' twice"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, header, data, length, message):
    file = write(tmp_path / "a.safetensors", header, data, length)
    with pytest.raises(ValueError, match=r"a.safetensors: .*expected .*, got .*; copy or download") as caught:
        read_safetensors(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_short_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="got no such file"):
        check_safetensors(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="got a folder"):
        check_safetensors(tmp_path)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(ValueError, match="got only 4 bytes"):
        check_safetensors(tmp_path / "short")
