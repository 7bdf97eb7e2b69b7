"""Checkpoints, original backbones and pickled references that are damaged, hostile or of another kind."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bad_inputs.case import Case, Prepare, steps, write
from tests.helpers.hostile_files import dictionary, integer, module, tensor, text, write_archive

CONVERT = "convert bad.pth --preset detris-b --output out"
TRAIN = "train --preset detris-b --dataset refshapes --data_root data --output_dir out"
DINO = f"{TRAIN} --dino bad.pth --text_model backbones/text-0"
CLIP = f"{TRAIN} --clip bad.pth --vision_model backbones/vision-0"
CHECK = "data check --dataset refshapes --data_root data"
REFS = "data/refshapes/refs(unc).p"
NO_CODE = "without pickled code, which is never executed"
REFS_FORBIDDEN = ("refs(unc).p", "expected a pickle of plain containers", "original source")
REFS_DAMAGED = ("refs(unc).p", "expected a pickle, got unreadable data", "download it again")


def save(content: Callable[[], Any], **options: Any) -> Prepare:
    """Return a function that saves a checkpoint."""
    return lambda root: torch.save(content(), root / "bad.pth", **options)


def archive(index: bytes, **options: Any) -> Prepare:
    """Return a function that writes an archive with an index of opcodes."""

    def prepare(root: Path) -> None:
        write_archive(root / "bad.pth", index, **options)

    return prepare


def damage(change: Callable[[bytes], bytes], name: str = "bad.pth") -> Prepare:
    """Return a function that changes a file's bytes."""
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes())) and None


def state_dict() -> dict[str, Any]:
    return {"state_dict": {"module.w": torch.full((64, 64), 3.25)}}


def dino(width: int = 64, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the first weights of an original DINOv2 file."""
    weights = {
        "cls_token": torch.zeros(1, 1, width),
        "pos_embed": torch.zeros(1, 5, width),
        "register_tokens": torch.zeros(1, 4, width),
        "patch_embed.proj.weight": torch.zeros(width, 3, 14, 14),
        "blocks.0.mlp.fc1.weight": torch.zeros(4 * width, width),
    }
    return {**weights, **{name.replace("__", "."): value for name, value in changes.items()}}


def clip(width: int = 64, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the first weights of an original CLIP file."""
    weights = {
        "token_embedding.weight": torch.zeros(20, width),
        "positional_embedding": torch.zeros(17, width),
        "text_projection": torch.zeros(width, 8),
        "transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(4 * width, width),
    }
    return {**weights, **{name.replace("__", "."): value for name, value in changes.items()}}


def shared_lists() -> bytes:
    """Return a pickle of 250 bytes whose `repr` has 2**40 parts."""
    parts = b"".join(b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(30))
    return b"\x80\x02]q\x000" + parts + b"](}X\x06\x00\x00\x00ref_idh\x1ese."


def shared_modules() -> bytes:
    shared = module() + b"q\x00"
    for i in range(40):
        shared += b"0" + module(text("a"), b"h" + bytes([i]), text("b"), b"h" + bytes([i])) + b"q" + bytes([i + 1])
    return shared


def refs(content: Any) -> Prepare:
    return write(REFS, content if isinstance(content, bytes) else pickle.dumps(content))


NAN = torch.full((64,), float("nan"))
CASES = [
    # -- released checkpoints
    Case("checkpoint missing", CONVERT, ("bad.pth", "found no such file", "check the path")),
    Case(
        "checkpoint is a folder", CONVERT, ("bad.pth", "found no such file"), lambda root: (root / "bad.pth").mkdir()
    ),
    Case("checkpoint is empty", CONVERT, ("bad.pth", NO_CODE, "pass another file"), write("bad.pth", b"")),
    Case("checkpoint is text", CONVERT, ("bad.pth", NO_CODE, "not a file of torch.save"), write("bad.pth", "weights")),
    Case("checkpoint is an image", "convert photo.png --preset detris-b --output out", ("photo.png", NO_CODE)),
    Case(
        "checkpoint is safetensors",
        "convert run/best/head.safetensors --preset detris-b --output out",
        ("head.safetensors", NO_CODE, "pass another file"),
    ),
    Case(
        "checkpoint truncated",
        CONVERT,
        ("bad.pth", "got a truncated one", "download it again"),
        steps(save(state_dict), damage(lambda data: data[:-300])),
        subprocess=True,
    ),
    Case(
        "checkpoint with a flipped bit",
        CONVERT,
        ("bad.pth", "Bad CRC-32", "download it again"),
        steps(save(state_dict), damage(lambda data: data.replace(b"\x00\x00\x50\x40", b"\x00\x00\x51\x40", 1))),
    ),
    Case(
        "checkpoint with a damaged directory",
        CONVERT,
        ("bad.pth", NO_CODE, "download it again"),
        steps(save(state_dict), damage(lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03"))),
    ),
    Case(
        "old checkpoint truncated",
        CONVERT,
        ("bad.pth", "storages of 16,384 bytes", "download it again"),
        steps(save(state_dict, _use_new_zipfile_serialization=False), damage(lambda data: data[:-300])),
    ),
    Case(
        "zip file of another kind",
        CONVERT,
        ("bad.pth", "0 files named data.pkl", "pass another file"),
        lambda root: zipfile.ZipFile(root / "bad.pth", "w").writestr("a.txt", "x"),
    ),
    Case("checkpoint is a list", CONVERT, ("bad.pth", "got a list", "pass another file"), save(lambda: [1])),
    Case("no state_dict", CONVERT, ("bad.pth", 'without "state_dict"', "complete checkpoint"), save(lambda: {"a": 1})),
    Case(
        "state_dict is a list",
        CONVERT,
        ("bad.pth", "not a dict of tensors", "pass another file"),
        save(lambda: {"state_dict": [torch.zeros(1)]}),
    ),
    Case(
        "state_dict of numbers",
        CONVERT,
        ("bad.pth", "not a dict of tensors", "pass another file"),
        save(lambda: {"state_dict": {"module.w": 1.0}}),
    ),
    Case("DINO alone", CONVERT, ("bad.pth", "a DINO backbone alone", "complete checkpoint"), save(dino)),
    Case("CLIP alone", CONVERT, ("bad.pth", "a CLIP alone", "complete checkpoint"), save(clip)),
    Case("state_dict of another model", CONVERT, ("bad.pth", "missing keys", "no preset matches"), save(state_dict)),
    Case(
        "TorchScript archive",
        CONVERT,
        ("bad.pth", "got a TorchScript archive", "pass another file"),
        archive(module(text("a"), tensor()), scripted=True),
    ),
    Case(
        "pickle that calls a program", CONVERT, ("bad.pth", NO_CODE), write("bad.pth", b"cos\nsystem\n(Vmkdir x\ntR.")
    ),
    Case(
        "checkpoint that calls a program",
        CONVERT,
        ("bad.pth", NO_CODE, "os.mkdir is not allowed"),
        archive(dictionary(text("a"), b"cos\nmkdir\n" + text("ran") + b"\x85R")),
    ),
    Case(
        "checkpoint with the options of a program",
        CONVERT,
        ("bad.pth", "argparse.Namespace is not allowed", "save its state_dict alone"),
        save(lambda: {"state_dict": {}, "args": argparse.Namespace(lr=1)}),
    ),
    Case(
        "checkpoint that allocates memory",
        CONVERT,
        ("bad.pth", "builtins.bytearray is not allowed"),
        archive(dictionary(text("a"), b"cbuiltins\nbytearray\n" + integer(10**12) + b"\x85R")),
    ),
    Case(
        "storage larger than the file",
        CONVERT,
        ("bad.pth", "a storage of 4,000,000,000,000 bytes in a member of 16", "download it again"),
        archive(dictionary(text("a"), tensor(numel=10**12))),
    ),
    Case(
        "tensor with stride 0",
        CONVERT,
        ("bad.pth", "1,000,000,000,000 elements in a storage of 4"),
        archive(dictionary(text("a"), tensor(size=(10**12,), stride=(0,)))),
    ),
    Case(
        "compressed tensors",
        CONVERT,
        ("bad.pth", "archive/data/0 is compressed", "download it again"),
        archive(dictionary(text("a"), tensor()), compression=zipfile.ZIP_DEFLATED, data_0=bytes(10**6)),
    ),
    Case(
        "nested tuple as a key",
        CONVERT,
        ("bad.pth", "a key that is neither text nor an integer"),
        archive(b"})" + b"\x85" * 75_000 + b"K\x01s"),
    ),
    Case("memo bomb", CONVERT, ("bad.pth", "do not fit together"), archive(b"r\xff\xff\xff\x7fh\x01")),
    Case(
        "attributes of the reader",
        CONVERT,
        ("bad.pth", "sets the attributes of a"),
        archive(b"ccollections\nOrderedDict\n" + dictionary(text("keys"), b"K\x01") + b"b"),
    ),
    # -- original backbones
    Case("original file missing", DINO, ("bad.pth", "found no such file", "check the path")),
    Case("original file is text", DINO, ("bad.pth", NO_CODE, "pass another file"), write("bad.pth", "weights")),
    Case("CLIP instead of DINO", DINO, ("bad.pth", "got a CLIP", "pass another file"), save(clip)),
    Case("DINO instead of CLIP", CLIP, ("bad.pth", "got a DINO backbone", "pass another file"), save(dino)),
    Case(
        "original file of numbers",
        DINO,
        ("bad.pth", "other values than tensors", "pass another file"),
        save(lambda: {"cls_token": 1, "pos_embed": 2}),
    ),
    Case("narrow DINO", DINO, ("bad.pth", "width 32, expected a multiple of 64"), save(lambda: dino(32))),
    Case("narrow CLIP", CLIP, ("bad.pth", "width 48, expected a multiple of 64"), save(lambda: clip(48))),
    Case(
        "DINO without blocks",
        DINO,
        ("bad.pth", "size cannot be inferred"),
        save(lambda: dino(blocks__7__x=torch.zeros(1))),
    ),
    Case(
        "DINO with many blocks",
        DINO,
        ("bad.pth", "layers whose largest number is 10000000"),
        save(lambda: dino(blocks__10000000__x=torch.zeros(1))),
    ),
    Case(
        "DINO with NaN", DINO, ("bad.pth", "NaN or infinite values in norm.bias"), save(lambda: dino(norm__bias=NAN))
    ),
    Case(
        "DINO of integers",
        DINO,
        ("bad.pth", "type int64 in norm.bias", "pass another file"),
        save(lambda: dino(norm__bias=torch.arange(64))),
    ),
    Case(
        "CLIP of booleans",
        CLIP,
        ("bad.pth", "type bool in ln_final.bias", "pass another file"),
        save(lambda: clip(ln_final__bias=torch.arange(64) > 3)),
    ),
    Case(
        "CLIP of complex numbers",
        CLIP,
        ("bad.pth", "type complex64 in ln_final.bias"),
        save(lambda: clip(ln_final__bias=torch.zeros(64, dtype=torch.complex64))),
    ),
    Case(
        "CLIP without data",
        CLIP,
        ("bad.pth", "device meta) in ln_final.bias"),
        save(lambda: clip(ln_final__bias=torch.zeros(64, device="meta"))),
    ),
    Case("DINO incomplete", DINO, ("bad.pth", "does not match: missing keys", "pass another file"), save(dino)),
    Case(
        "TorchScript that calls a program",
        CLIP,
        ("bad.pth", "os.mkdir is not allowed"),
        archive(module(text("a"), b"cos\nmkdir\n" + text("ran") + b"\x85R"), scripted=True),
    ),
    Case(
        "TorchScript that changes the reader",
        CLIP,
        ("bad.pth", "sets the attributes of a"),
        archive(b"c__torch__.m\nModule\n" + dictionary(text("a"), b"K\x01") + b"b", scripted=True),
    ),
    Case(
        "TorchScript with shared modules",
        CLIP,
        ("bad.pth", "shared too often", "pass another file"),
        archive(shared_modules(), scripted=True),
    ),
    # -- references of REFER
    Case("references are text", CHECK, REFS_DAMAGED, refs(b"no pickle")),
    Case("references are empty", CHECK, REFS_DAMAGED, refs(b"")),
    Case("references truncated", CHECK, REFS_DAMAGED, damage(lambda data: data[:-50], REFS)),
    Case("references of another class", CHECK, (*REFS_FORBIDDEN, "io.StringIO"), refs(b"cio\nStringIO\n)\x81.")),
    Case(
        "references that call a program", CHECK, (*REFS_FORBIDDEN, "os.system"), refs(b"cos\nsystem\n(Vmkdir x\ntR.")
    ),
    Case("references with a memo bomb", CHECK, REFS_DAMAGED, refs(b"\x80\x02r\xff\xff\xff\x7f.")),
    Case("references with a nested key", CHECK, (*REFS_DAMAGED, "a key"), refs(b"})" + b"\x85" * 75_000 + b"K\x01s.")),
    Case("references with nested lists", CHECK, (*REFS_DAMAGED, "nested"), refs(b"]" * 5000 + b"a" * 4999 + b".")),
    Case("references that share lists", CHECK, (*REFS_DAMAGED, "shared too often"), refs(shared_lists())),
    Case(
        "references with converted line ends",
        CHECK,
        ("refs(unc).p", "line ends were converted to CRLF", "without conversion"),
        refs(pickle.dumps([{"image_id": 10, "n": 266}] * 3, 2).replace(b"\n", b"\r\n")),
    ),
    Case("references are a dict", CHECK, ("refs(unc).p", "expected a list of references"), refs({"a": 1})),
    Case("references are numbers", CHECK, ("refs(unc).p", "expected a list of references"), refs([1, 2])),
]
