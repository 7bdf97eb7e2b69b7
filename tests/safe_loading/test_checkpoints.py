"""Checkpoints: nothing is executed, and small files cannot exhaust the machine or change the reader."""

from __future__ import annotations

import collections
import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from detris_peft.safe_loading import read_checkpoint
from detris_peft.safe_loading.limits import MAX_DEPTH
from tests.helpers.hostile_files import dictionary, integer, module, tensor, text, write_archive
from tests.helpers.original_files import write_torchscript


def read(file, **options):
    return read_checkpoint(file, "a checkpoint of this test", **options)


def training_state() -> dict:
    """Return what training code saves: weights, optimizer, scheduler, and a device."""
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best_iou": 0.5,
        "state_dict": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"milestones": collections.Counter([3, 3, 5])},
        "parameter": nn.Parameter(torch.ones(2)),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([1, 2]),
        "views": [torch.arange(12.0)[2:8].view(2, 3).T, torch.zeros(0, 3), torch.tensor(4.0).half()],
        "others": [torch.ones(2, dtype=dtype) for dtype in (torch.int16, torch.bool, torch.complex64)],
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_are_read_as_by_torch(tmp_path, legacy):
    torch.save(training_state(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    expected, got = torch.load(tmp_path / "a.pth", weights_only=True), read(tmp_path / "a.pth")
    assert got.keys() == expected.keys()
    assert list(got["state_dict"]) == ["weight", "bias"]
    for key, value in expected["state_dict"].items():
        assert torch.equal(got["state_dict"][key], value)
    assert torch.equal(got["views"][0], expected["views"][0])


@pytest.mark.parametrize(
    ("legacy", "module"), [(False, b"numpy._core"), (True, b"numpy._core"), (True, b"numpy.core")]
)
def test_numbers_of_numpy_do_not_prevent_reading_the_weights(tmp_path, legacy, module):
    """Released checkpoints may hold the best score as a NumPy number. NumPy 2 renamed the module."""
    scores = {"best_iou": np.float64(0.5), "best": np.bool_(True), "epoch": np.int64(3), "note": b"bytes"}
    torch.save({**scores, "w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "a.pth").read_bytes()
    if legacy:
        content = content.replace(b"numpy._core", module)
    (tmp_path / "a.pth").write_bytes(content)
    got = read(tmp_path / "a.pth")
    assert torch.equal(got["w"], torch.ones(2))
    assert got["note"] == b"bytes"


def test_text_is_encoded_as_latin_1_only(tmp_path):
    """Other encodings import a module, or compress."""
    opcodes = b"c_codecs\nencode\n" + text("a") + text("zlib") + b"\x86R"
    with pytest.raises(ValueError, match="another encoding than latin1"):
        read(write_archive(tmp_path / "a.pth", dictionary(text("a"), opcodes)))


HUGE = 10**12


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(numel=HUGE), "a storage of 4,000,000,000,000 bytes in a member of 16"),
        (tensor(numel=8), "a storage of 32 bytes in a member of 16"),
        (tensor(size=(HUGE,), stride=(0,)), "a tensor of 1,000,000,000,000 elements in a storage of 4"),
        (tensor(size=(2, 3), stride=(3, 1)), "a tensor of 6 elements in a storage of 4"),
        (tensor(size=(2,), stride=(4,)), "a tensor of 2 elements in a storage of 4"),
        (tensor(offset=1), "a tensor of 4 elements in a storage of 4"),
        (tensor(size=(-4,)), "a tensor with a negative size"),
        (tensor(size=(1,) * 50, stride=(1,) * 50), "a tensor of 50 dimensions"),
        (tensor(size=(4,), stride=()), "a tensor of 1 dimensions with 0 strides"),
        (tensor(key="9"), "There is no item named 'archive/data/9'"),
        (tensor(numel=4) + b"0" + tensor(numel=3, size=(3,)), "two sizes of storage '0'"),
        (b"(" + tensor() * 9 + b"l", "tensors of 144 bytes in storages of 16"),
        (b"}" + b")" + b"\x85" * 75_000 + b"K\x01s", "a key that is neither text nor an integer but tuple"),
        (b"]" * 1000 + b"a" * 999, f"nested more than {MAX_DEPTH} levels"),
        (b"ccollections\nCounter\n])" + b"\x85" * 75_000 + b"a\x85R", "Counter|not allowed"),
        (b"r\xff\xff\xff\x7f" + b"h\x01", "do not fit together"),
        (b"cbuiltins\nbytearray\n" + integer(HUGE) + b"\x85R", "builtins.bytearray is not allowed"),
        (b"ctorch\nFloatTensor\n" + integer(HUGE) + b"\x85R", "torch.FloatTensor is not allowed"),
        (b"cos\nmkdir\n" + text("ran") + b"\x85R", "os.mkdir is not allowed"),
        (b"ccollections\nOrderedDict\n" + dictionary(text("keys"), b"K\x01") + b"b", "sets the attributes of a"),
        (b"ccollections\nOrderedDict\n)R" + dictionary(text("keys"), b"K\x01") + b"b", "sets the attributes of a"),
        (b"]" + dictionary(text("append"), b"K\x01") + b"b", "sets the attributes of a list"),
        (tensor() + dictionary(text("storage"), b"K\x01") + b"b", "sets the attributes of a TensorEntry"),
        (b"K\x01)R", "not an allowed function"),
        (b"K\x01Q", "refers to other objects than storages"),
    ],
)
def test_hostile_indexes_are_refused(tmp_path, monkeypatch, value, message, scripted):
    monkeypatch.chdir(tmp_path)
    root = module(text("a"), value) if scripted else dictionary(text("a"), value)
    file = write_archive(tmp_path / "a.pth", root, scripted=scripted)
    with pytest.raises(ValueError, match=message) as caught:
        read(file, scripted=scripted)
    assert str(caught.value).startswith(f"{file}: expected a PyTorch checkpoint without pickled code")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_an_archive_cannot_change_the_reader(tmp_path):
    """BUILD of a class would set attributes of the reader's own class, so that later archives read as empty."""
    good = module(text("w"), tensor())
    write_archive(tmp_path / "good.pt", good, scripted=True)
    before = read(tmp_path / "good.pt", scripted=True)
    assert torch.equal(before["w"], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for name, opcodes in (
        ("class", b"c__torch__.m\nModule\n" + dictionary(text("items"), b"K\x01") + b"b0"),
        ("function", b"ctorch._utils\n_rebuild_tensor_v2\n" + dictionary(text("__code__"), b"K\x01") + b"b0"),
    ):
        with pytest.raises(ValueError, match="sets the attributes of a"):
            read(write_archive(tmp_path / f"{name}.pt", opcodes + good, scripted=True), scripted=True)
    # Attributes named like methods are attributes.
    named = read(
        write_archive(tmp_path / "n.pt", module(text("items"), tensor(), text("__class__"), tensor()), scripted=True),
        scripted=True,
    )
    assert list(named) == ["items", "__class__"]
    assert torch.equal(read(tmp_path / "good.pt", scripted=True)["w"], before["w"])


def test_modules_that_contain_each_other_are_refused(tmp_path):
    shared = module() + b"q\x00"
    for i in range(60):
        shared += b"0" + module(text("a"), b"h" + bytes([i]), text("b"), b"h" + bytes([i])) + b"q" + bytes([i + 1])
    with pytest.raises(ValueError, match="shared too often"):
        read(write_archive(tmp_path / "shared.pt", shared, scripted=True), scripted=True)
    cycle = module() + b"q\x00" + dictionary(text("a"), b"h\x00") + b"b"
    with pytest.raises(ValueError, match="nested more than"):
        read(write_archive(tmp_path / "cycle.pt", cycle, scripted=True), scripted=True)


@pytest.mark.parametrize("scripted", [False, True])
def test_compressed_tensors_are_refused_before_they_are_expanded(tmp_path, scripted):
    """0.6 MB can expand to gigabytes."""
    numel = 20_000_000
    value = tensor(numel=numel, size=(numel,))
    root = module(text("a"), value) if scripted else dictionary(text("a"), value)
    file = write_archive(
        tmp_path / "bomb.pth", root, scripted=scripted, compression=zipfile.ZIP_DEFLATED, data_0=bytes(4 * numel)
    )
    assert file.stat().st_size < 200_000
    with pytest.raises(ValueError, match="the tensor archive/data/0 is compressed"):
        read(file, scripted=scripted)


@pytest.mark.parametrize("position", ["tensor", "index", "directory"])
@pytest.mark.parametrize("scripted", [False, True])
def test_damaged_archives_are_refused(tmp_path, position, scripted):
    """A flipped bit in a tensor would otherwise be a wrong weight."""
    file = tmp_path / "a.pth"
    weights = {"layer.weight": torch.full((64, 64), 3.25), "layer.bias": torch.zeros(9)}
    write_torchscript(weights, file) if scripted else torch.save(weights, file)
    content = bytearray(file.read_bytes())
    where = {
        "tensor": content.index(struct.pack("<f", 3.25) * 8) + 100,
        "index": content.index(b"FloatStorage"),
        "directory": content.rindex(b"PK\x01\x02"),
    }[position]
    content[where] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pth: expected .* (download it again|pass another file)") as caught:
        read(file, scripted=True)
    assert "\n" not in str(caught.value)


def test_names_that_differ_in_case_are_refused(tmp_path):
    """`zipfile` distinguishes them, torch does not, so it could read another index than the one that was checked."""
    file = write_archive(tmp_path / "a.pth", dictionary(text("a"), tensor()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/DATA.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match="two members of the same name"):
        read(file)


@pytest.mark.parametrize("change", ["numel", "truncated", "index"])
def test_hostile_files_of_old_torch_versions_are_refused(tmp_path, change):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(300)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    if change == "numel":
        content = content.replace(integer(300), integer(60_000))
    content = content[:-100] if change == "truncated" else content
    if change == "index":
        content = content.replace(b"ctorch\nFloatStorage\n", b"cbuiltins\nbytearray\n")
    (tmp_path / "old.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"(storages of|is not allowed|a tensor of)"):
        read(tmp_path / "old.pth")
