"""Checkpoints that are damaged, incomplete, mixed from two, or of another kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.case import Case, Prepare, edit_json, steps, write

BEST = "run/best"
HEAD = f"{BEST}/head.safetensors"
VISION, TEXT = f"{BEST}/vision_adapter", f"{BEST}/text_adapter"
PREDICT = f"predict --checkpoint {BEST} --image photo.png --text square --output out.png"
EVALUATE = f"evaluate --checkpoint {BEST} --dataset folder --split val"
OFFICIAL = f"convert {BEST} --to_official --output out.pth"
DOWNLOAD = "copy or download"
SAME = "take all files from the same checkpoint"


def remove(name: str) -> Prepare:
    """Return a function that removes a file or folder."""

    def prepare(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def cut(name: str, length: int) -> Prepare:
    """Return a function that truncates a file."""

    def prepare(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return prepare


def change_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Prepare:
    """Return a function that changes or removes the largest weight of a file, and the manifest."""

    def prepare(folder: Path) -> None:
        weights = load_file(folder / name)
        key = max(weights, key=lambda k: weights[k].numel())
        changed = change(weights.pop(key))
        weights = weights if changed is None else {**weights, key: changed.contiguous()}
        save_file(weights, folder / name, metadata={"format": "pt"})
        (folder / BEST / "manifest.json").unlink()

    return prepare


def unlisted(*prepares: Prepare) -> Prepare:
    """Return a function that also removes the manifest, as in checkpoints of earlier versions."""
    return steps(*prepares, remove(f"{BEST}/manifest.json"))


def edit_adapter(name: str, **changes) -> Prepare:
    """Return a function that changes fields of an adapter in the checkpoint's config."""

    def prepare(folder: Path) -> None:
        file = folder / BEST / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content[name].update(changes)
        file.write_text(json.dumps(content), encoding="utf-8")

    return prepare


def copy(source: str, target: str) -> Prepare:
    """Return a function that copies a file or folder."""

    def prepare(folder: Path) -> None:
        (shutil.copytree if (folder / source).is_dir() else shutil.copy)(folder / source, folder / target)

    return prepare


def header(content: str) -> bytes:
    """Return a safetensors file with a header and no data."""
    return len(content.encode()).to_bytes(8, "little") + content.encode()


CONFIG = f"{BEST}/config.json"

CASES = [
    # -- missing files
    Case("checkpoint without head", PREDICT, (HEAD, "is missing from the checkpoint", DOWNLOAD), remove(HEAD)),
    Case("checkpoint without adapter folder", PREDICT, (VISION, "is missing", DOWNLOAD), remove(VISION)),
    Case(
        "checkpoint without adapter weights",
        EVALUATE,
        (f"{TEXT}/adapter_model.safetensors", "is missing", DOWNLOAD),
        remove(f"{TEXT}/adapter_model.safetensors"),
    ),
    Case("converted checkpoint without head", OFFICIAL, (HEAD, "is missing", DOWNLOAD), remove(HEAD)),
    # -- damaged weights
    Case(
        "head differs from manifest",
        PREDICT,
        (BEST, "manifest.json describes", "head.safetensors has 100 bytes", DOWNLOAD),
        cut(HEAD, 100),
    ),
    Case(
        "adapter of another checkpoint",
        EVALUATE,
        (BEST, "manifest.json describes", "does not match its checksum", "remove manifest.json"),
        steps(
            copy(f"{BEST}/manifest.json", "kept.json"),
            change_weight(f"{TEXT}/adapter_model.safetensors", lambda w: w + 1),
            copy("kept.json", f"{BEST}/manifest.json"),
        ),
        may_write=("kept.json",),
    ),
    Case("head cut off", PREDICT, (HEAD, "expected a complete safetensors file", DOWNLOAD), unlisted(cut(HEAD, 4000))),
    Case("head empty", OFFICIAL, (HEAD, "only 0 bytes", DOWNLOAD), unlisted(cut(HEAD, 0))),
    Case(
        "head is text",
        EVALUATE,
        (HEAD, "expected a complete safetensors file", DOWNLOAD),
        unlisted(write(HEAD, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
    ),
    Case(
        "head with a huge header",
        PREDICT,
        (HEAD, "a header of", DOWNLOAD),
        unlisted(write(HEAD, b"\xff\xff\xff\xff\xff\xff\xff\x0f{}")),
    ),
    Case(
        "head with a header that is no JSON",
        PREDICT,
        (HEAD, "header of the safetensors file: expected JSON", DOWNLOAD),
        unlisted(write(HEAD, header("not json"))),
    ),
    Case(
        "head with offsets outside the file",
        PREDICT,
        (HEAD, "no valid shape and offsets", DOWNLOAD),
        unlisted(write(HEAD, header('{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'))),
    ),
    Case(
        "adapter cut off",
        PREDICT,
        (f"{VISION}/adapter_model.safetensors", "expected a complete safetensors file", DOWNLOAD),
        unlisted(cut(f"{VISION}/adapter_model.safetensors", 2000)),
    ),
    Case("head with NaN", PREDICT, (HEAD, "expected finite values", "NaN"), change_weight(HEAD, lambda w: w / 0 * 0)),
    Case("head with infinity", EVALUATE, (HEAD, "expected finite values"), change_weight(HEAD, lambda w: w.exp() / 0)),
    Case(
        "head with integers",
        OFFICIAL,
        (HEAD, "expected floating-point values", "torch.int32"),
        change_weight(HEAD, lambda w: w.int()),
    ),
    Case(
        "adapter with booleans",
        PREDICT,
        (f"{TEXT}/adapter_model.safetensors", "expected floating-point values", "torch.bool"),
        change_weight(f"{TEXT}/adapter_model.safetensors", lambda w: w.bool()),
    ),
    Case(
        "adapter with complex numbers",
        PREDICT,
        (f"{VISION}/adapter_model.safetensors", "expected floating-point values", "torch.complex64"),
        change_weight(f"{VISION}/adapter_model.safetensors", lambda w: w.to(torch.complex64)),
    ),
    Case("head without a weight", PREDICT, (HEAD, "1 missing", "load them with"), change_weight(HEAD, lambda w: None)),
    Case(
        "head with another shape",
        PREDICT,
        (HEAD, "do not fit", "got (2, 3)"),
        change_weight(HEAD, lambda w: torch.ones(2, 3)),
    ),
    # -- damaged manifest
    Case(
        "manifest is no JSON",
        PREDICT,
        (BEST, "manifest.json cannot be read", DOWNLOAD),
        write(f"{BEST}/manifest.json", "{"),
    ),
    Case(
        "manifest of another type", PREDICT, (BEST, "is not listed", DOWNLOAD), write(f"{BEST}/manifest.json", "[1]")
    ),
    Case(
        "manifest without the head",
        EVALUATE,
        (BEST, "head.safetensors is not listed", "remove manifest.json"),
        write(f"{BEST}/manifest.json", {}),
    ),
    # -- damaged configs
    Case("config is no JSON", PREDICT, (CONFIG, "expected JSON", DOWNLOAD), write(CONFIG, "{")),
    Case("config is a list", EVALUATE, (CONFIG, "JSON of another type", DOWNLOAD), write(CONFIG, [])),
    Case("config is empty", OFFICIAL, (CONFIG, "expected JSON", DOWNLOAD), write(CONFIG, "")),
    Case("config is not UTF-8", PREDICT, (CONFIG, "UTF-8", "save it as UTF-8"), write(CONFIG, b'{"a": "\xff"}')),
    Case("config nested deeply", PREDICT, (CONFIG, "nested too deeply", DOWNLOAD), write(CONFIG, "[" * 5000)),
    Case(
        "config of another model",
        PREDICT,
        (CONFIG, "expected model_type 'detris', got 'bert'", "pass a DETRIS checkpoint"),
        edit_json(CONFIG, model_type="bert"),
    ),
    Case(
        "converted config of another model",
        OFFICIAL,
        (CONFIG, "expected model_type 'detris', got 'clip'", "pass a DETRIS checkpoint"),
        edit_json(CONFIG, model_type="clip"),
    ),
    Case(
        "config with a field of a wrong type",
        PREDICT,
        (CONFIG, "hidden_dim='wide'", "expected"),
        edit_json(CONFIG, hidden_dim="wide"),
    ),
    Case(
        "config with an unknown field",
        EVALUATE,
        (CONFIG, "hiden_dim", "use hidden_dim"),
        edit_json(CONFIG, hiden_dim=8),
    ),
    Case(
        "config with a backbone of a wrong type",
        PREDICT,
        (CONFIG, "vision_config", "model_type"),
        edit_json(CONFIG, vision_config=7),
    ),
    Case(
        "config without an adapter that exists",
        PREDICT,
        (CONFIG, "expected vision_adapter", "got null", SAME),
        edit_json(CONFIG, vision_adapter=None),
    ),
    Case(
        "config with an adapter of a wrong type",
        PREDICT,
        (CONFIG, "text_adapter", "expected a config of peft"),
        edit_json(CONFIG, text_adapter=3),
    ),
    Case(
        "config with an unknown type of adapter",
        PREDICT,
        (CONFIG, "vision_adapter.peft_type", "'NO_SUCH_TYPE'", "import the module"),
        edit_adapter("vision_adapter", peft_type="NO_SUCH_TYPE"),
    ),
    Case(
        "config with an unknown field of an adapter",
        EVALUATE,
        (CONFIG, "vision_adapter.rank", "correct or remove it"),
        edit_adapter("vision_adapter", rank=4),
    ),
    Case(
        "config with an adapter of another width",
        PREDICT,
        ("vision_adapter/adapter_model.safetensors", "do not fit", "expected ("),
        unlisted(edit_adapter("vision_adapter", dim=48)),
    ),
    # -- damaged adapter configs
    Case(
        "adapter config is no JSON",
        PREDICT,
        (f"{VISION}/adapter_config.json", "expected JSON", DOWNLOAD),
        write(f"{VISION}/adapter_config.json", "{,}"),
    ),
    Case(
        "text adapter config of type LORA",
        PREDICT,
        (f"{TEXT}/adapter_config.json", "expected peft_type 'TEXT_ADAPTER'", "got 'LORA'", SAME),
        edit_json(f"{TEXT}/adapter_config.json", peft_type="LORA"),
    ),
    Case(
        "adapter config is a list",
        EVALUATE,
        (f"{TEXT}/adapter_config.json", "expected peft_type", "got None", SAME),
        write(f"{TEXT}/adapter_config.json", []),
    ),
    # -- backbones
    Case(
        "checkpoint names no backbone",
        PREDICT,
        ("does not name its vision backbone", "vision_name_or_path in", CONFIG),
        edit_json(CONFIG, vision_name_or_path=None),
    ),
    Case(
        "checkpoint names a missing backbone",
        PREDICT,
        ("backbone", "does not exist", "correct text_name_or_path in"),
        edit_json(CONFIG, text_name_or_path="../../gone"),
    ),
    Case(
        "checkpoint names a backbone of another size",
        PREDICT,
        ("a vision encoder with hidden_size=640", "load the checkpoint over the backbone"),
        lambda folder: edit_json(
            CONFIG, vision_config={**json.loads((folder / CONFIG).read_text())["vision_config"], "hidden_size": 640}
        )(folder),
    ),
]
