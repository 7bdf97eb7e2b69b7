"""Inputs of the fuzz targets: valid files, mutations of them, and files that are built from hostile parts."""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2WithRegistersConfig
from transformers import Dinov2WithRegistersModel as Dinov2

from detris_peft import presets
from detris_peft.data.masks import encode_mask
from tests.helpers.hostile_files import dictionary, integer, module, tensor, text
from tests.helpers.original_files import original_weights, write_torchscript
from tests.helpers.reference import FIXTURES

CHECKPOINT = FIXTURES / "checkpoint_0.1.0.dev0"
HEIGHT, WIDTH = 20, 30
_POLYGON = [2, 2, 12, 2, 12, 12.5]


# -- valid files ------------------------------------------------------------------------------------------------------


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@cache
def image_seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [_encoded(image, form, exif=exif) for form in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [_encoded(image.convert("P"), form) for form in ("GIF", "PNG", "BMP")]
    return files + [_encoded(image.convert(mode), form) for mode, form in (("L", "PPM"), ("RGB", "JPEG2000"))]


@cache
def mask_seeds() -> list[bytes]:
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (5, 5, 15, 15))
    return [_encoded(mask.convert(mode), "PNG") for mode in ("L", "1", "P", "RGB")] + [_encoded(mask, "TIFF")]


@cache
def segmentation_seeds() -> list[bytes]:
    rle = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
    text_rle = encode_mask([_POLYGON], HEIGHT, WIDTH)
    values = [[_POLYGON], [_POLYGON, [1, 1, 3, 1, 3, 3, 1, 3]], rle, [rle, rle]]
    return [json.dumps(value).encode() for value in [*values, text_rle]]


@cache
def folder_seeds() -> list[bytes]:
    lines = [
        {"file_name": "a.png", "mask": [_POLYGON], "sentence": "the square", "ref_id": 3},
        {"file_name": "b.png", "mask": json.loads(segmentation_seeds()[2]), "sentences": ["one", "two"]},
    ]
    return ["\n".join(json.dumps(line) for line in lines).encode()]


def _images() -> list[dict[str, Any]]:
    return [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]


@cache
def coco_seeds() -> list[bytes]:
    segmentations = [json.loads(seed) for seed in segmentation_seeds()[:3]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": value, "sentences": ["left", f"square {i}"]}
        for i, value in enumerate(segmentations)
    ]
    return [json.dumps({"images": _images(), "annotations": annotations, "categories": [{"id": 1}]}).encode()]


@cache
def instances_seeds() -> list[bytes]:
    annotations = [{"id": i, "image_id": 1, "category_id": 1, "segmentation": [_POLYGON]} for i in (5, 6)]
    return [json.dumps({"images": _images(), "annotations": annotations}).encode()]


@cache
def refs_seeds() -> list[bytes]:
    refs = [
        {
            "ref_id": i,
            "ann_id": 5 + i,
            "image_id": 1,
            "category_id": 1,
            "split": "train",
            "file_name": "a.png",
            "sent_ids": [i],
            "sentences": [{"sent_id": i, "sent": "à gauche", "raw": "À gauche", "tokens": ["à", "gauche"]}],
        }
        for i in range(2)
    ]
    return [pickle.dumps(refs, protocol) for protocol in (2, 0, 4)]


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@cache
def checkpoint_seeds() -> list[bytes]:
    weights = {"module.a.weight": torch.ones(4, 3), "module.a.bias": torch.arange(4.0)[1:]}
    content = {"epoch": 1, "state_dict": weights, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    return [_saved(content), _saved(content, _use_new_zipfile_serialization=False)]


@cache
def dinov2_seeds() -> list[bytes]:
    config = Dinov2WithRegistersConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=28, patch_size=14, mlp_ratio=1
    )
    return [_saved(original_weights(Dinov2(config), "vision"))]


@cache
def clip_seeds() -> list[bytes]:
    config = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=20,
        projection_dim=8,
        max_position_embeddings=17,
        bos_token_id=18,
        eos_token_id=19,
    )
    weights = original_weights(CLIPTextModelWithProjection(config), "text")
    with tempfile.TemporaryDirectory() as folder:
        write_torchscript(weights, Path(folder) / "clip.pt")
        return [_saved(weights), (Path(folder) / "clip.pt").read_bytes()]


@cache
def safetensors_seeds() -> list[bytes]:
    tensors = {"a": torch.ones(3, 2), "b": torch.arange(3), "c": torch.zeros(0, 2)}
    return [safetensors.torch.save(tensors, metadata={"format": "pt"})]


@cache
def config_seeds() -> list[bytes]:
    return [json.dumps(presets.get(name).to_dict()).encode() for name in ("tiny", "detris-l")]


@cache
def processor_seeds() -> list[bytes]:
    return [_one_line(CHECKPOINT / "processor_config.json")]


@cache
def tokenizer_seeds() -> list[bytes]:
    return [_one_line(CHECKPOINT / "tokenizer.json")]


def _one_line(file: Path) -> bytes:
    return json.dumps(json.loads(file.read_text(encoding="utf-8"))).encode()


@cache
def columns_seeds() -> list[bytes]:
    return [b"image: img\nsentences: info.caption\nbox: box\nbox_format: xyxy\nunits: pixels\nsplits: {testA: test}\n"]


@cache
def yaml_seeds() -> list[bytes]:
    return [b"preset: tiny\nbase: &b {lr: 2.0e-3, steps: [1, 2]}\nother: {<<: *b, name: 'x', date: 2024-05-06}\n"]


# -- mutations --------------------------------------------------------------------------------------------------------

_PARTS = st.sampled_from(
    [
        b"",
        b"\x00",
        b"\xff" * 4,
        b"\x7f\xff\xff\xff",
        b"\x80",
        b"\r\n",
        b"0",
        b"-1",
        b"9" * 30,
        b"1e999",
        b"NaN",
        b"[" * 300,
    ]
) | st.binary(max_size=8)


@st.composite
def _edited(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draw a seed in which some ranges are replaced, repeated or removed."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 1, 2, 4, 8, 64, 10**6]))
        kind = draw(st.sampled_from(["replace", "repeat", "flip"]))
        part = data[start : start + length]
        if kind == "repeat":
            part = part[:1000] * draw(st.sampled_from([2, 3, 50]))
        elif kind == "flip":
            part = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in part[:1]) + part[1:]
        else:
            part = draw(_PARTS)
        data = data[:start] + part + data[start + length :]
    return data


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw edited seeds and random bytes."""
    return _edited(seeds) | st.binary(max_size=200)


_VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 2.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10_000_000, "", "a",
    "\ud800", "../../etc/passwd", "a.png", "é" * 300, "<__import__('os').system('exit')>", [], [[]], [None],
    [1, 2, 3, 4], {}, {"id": 1}, {"size": [20, 30], "counts": [1]}, [[0.0] * 6], [[1e9] * 8], [0] * 2000,
    {"__class__": "x"},
]  # fmt: skip


@st.composite
def _edited_json(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draw a seed in which some values are replaced, removed or repeated. Every line of a seed is one value."""
    lines = [json.loads(line) for line in draw(st.sampled_from(seeds)).splitlines()]
    root = copy.deepcopy(lines)
    for _ in range(draw(st.integers(1, 4))):
        node = root
        while True:
            keys = list(node) if isinstance(node, dict) else [*range(len(node))]
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and draw(st.integers(0, 3)):
                node = node[key]
                continue
            action = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "rename"]))
            if action == "replace":
                node[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
            elif action == "remove" or (isinstance(node, list) and action == "rename"):
                del node[key]
            elif action == "repeat":
                node[key] = [copy.deepcopy(node[key]) for _ in range(draw(st.sampled_from([2, 30])))]
            else:
                node[f"{key}x"] = node.pop(key)
            break
    return "\n".join(json.dumps(line) for line in root).encode()


def mutated_json(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw JSON with other values, and files that may no longer be JSON."""
    return _edited_json(seeds) | _edited_json(seeds) | mutated(seeds)


# -- files built from parts -------------------------------------------------------------------------------------------

_OPCODES = [
    b"(", b")", b"]", b"}", b"]q\x00", b"}q\x01", b"h\x00", b"h\x01", b"q\x02", b"h\x02", b"a", b"e", b"s", b"u",
    b"t", b"\x85", b"\x86", b"\x87", b"0", b"1", b"2", b"N", b"\x88", b"K\x01", b"K\x07", b"U\x02\xe9a",
    b"X\x01\x00\x00\x00k", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x00", b"\x8a\x04\xff\xff\xff\x7f",
    b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"l", b"d", b"\x8f", b"\x90", b"\x91", b"\x94", b"R", b"b", b"\x81", b"Q",
    b"\x93", b"I01\n", b"L5L\n", b"S'a'\n", b"Vx\n", b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"cbuiltins\nbytearray\n", b"c__torch__.m\nModule\n", b"cposix\nmkdir\n", b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch.jit._pickle\nrestore_type_tag\n", text("storage"),
    text("ran"), b"\x85" * 500, b"]" * 500, b"a" * 500, integer(2**40), b"(X\x03\x00\x00\x00rant",
]  # fmt: skip


def _programs() -> st.SearchStrategy[bytes]:
    """Draw sequences of opcodes."""
    return st.lists(st.sampled_from(_OPCODES), max_size=60).map(b"".join)


def _attack(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw pickles that would run code if they were loaded by `pickle`."""
    calls = st.sampled_from(
        [
            b"cos\nsystem\n",
            b"cposix\nmkdir\n",
            b"csubprocess\ncall\n",
            b"cbuiltins\nexec\n",
            b"cbuiltins\n__import__\n",
        ]
    )
    return st.builds(
        lambda call, seed, reduce: seed[:-1] + call + text("touch ran") + reduce + b"0.",
        calls,
        st.sampled_from(seeds),
        st.sampled_from([b"\x85R", b"\x85\x81"]),
    )


def pickles(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw edited pickles, sequences of opcodes, and pickles that call functions."""
    programs = _programs().map(lambda program: b"\x80\x02" + program + b".")
    return _edited(seeds) | programs | _attack(seeds)


def _rebuilt(archive: bytes, edit: Callable[[str, bytes], bytes], compression: int) -> bytes:
    """Return an archive with edited members and correct checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return stream.getvalue()


_SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**62])
_TENSORS = st.builds(
    lambda numel, size, stride, offset, key: tensor(numel, tuple(size), tuple(stride), offset, key),
    _SIZES,
    st.lists(_SIZES, max_size=3),
    st.lists(_SIZES, max_size=3),
    _SIZES,
    st.sampled_from(["0", "1", "9", "../0"]),
)


@st.composite
def _rebuilt_archives(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draw archives with another index, or other weights."""
    archives = [seed for seed in seeds if seed.startswith(b"PK")]
    archive = draw(st.sampled_from(archives))
    name = next(n for n in zipfile.ZipFile(io.BytesIO(archive)).namelist() if n.endswith("/data.pkl"))
    index = zipfile.ZipFile(io.BytesIO(archive)).read(name)
    scripted = b"__torch__" in index
    value = draw(_TENSORS | _programs())
    built = module(text("a"), value) if scripted else dictionary(text("state_dict"), value)
    new = draw(st.sampled_from([draw(_edited([index])), b"\x80\x02" + built + b"."]))
    weights = draw(st.sampled_from([None, b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff"]))

    def edit(member: str, content: bytes) -> bytes:
        if member == name:
            return new
        return (weights * (len(content) // 4 + 1))[: len(content)] if weights and "/data/" in member else content

    return _rebuilt(archive, edit, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


def archives(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw edited checkpoints, and archives with an edited or hostile index and correct checksums."""
    return _rebuilt_archives(seeds) | _edited(seeds)


@st.composite
def _rebuilt_safetensors(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    data = draw(st.sampled_from(seeds))
    (length,) = struct.unpack("<Q", data[:8])
    header = draw(_edited_json([data[8 : 8 + length].strip()]))
    stated = draw(st.sampled_from([len(header), len(header), 2**63, 0]))
    return struct.pack("<Q", stated) + header + data[8 + length :]


def safetensors_files(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw files with an edited header, and edited files."""
    return _rebuilt_safetensors(seeds) | _edited(seeds)
