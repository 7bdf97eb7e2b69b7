"""Adapter configs and weights that are wrong, in checkpoints, on the command line and in YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Prepare, edit_json, write

BEST = "run/best"
PREDICT = f"predict --checkpoint {BEST} --image photo.png --text square --output out.png"
TRAIN = "train --preset tiny --data_root data --dataset refshapes --output_dir new --epochs 1 --batch_size 2"
ABSURD = 16 * 10**8


def field(adapter: str, **changes: Any) -> Prepare:
    """Return a function that changes fields of an adapter in a checkpoint's config.json."""

    def prepare(folder: Path) -> None:
        file = folder / BEST / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content[adapter].update(changes)
        file.write_text(json.dumps(content), encoding="utf-8")

    return prepare


CASES = [
    Case(
        "adapter width is text",
        PREDICT,
        ("config.json", "vision_adapter.dim='16'", "expected int", "correct"),
        field("vision_adapter", dim="16"),
    ),
    Case(
        "adapter width is a bool",
        PREDICT,
        ("config.json", "text_adapter.dim=True", "expected int", "correct"),
        field("text_adapter", dim=True),
    ),
    Case(
        "adapter width is a float",
        PREDICT,
        ("config.json", "vision_adapter.dim=16.0", "expected int", "correct"),
        field("vision_adapter", dim=16.0),
    ),
    Case(
        "adapter width is negative",
        PREDICT,
        ("config.json", "dim=-16", "expected a positive multiple of 16"),
        field("text_adapter", dim=-16),
    ),
    Case(
        "adapter width is absurd",
        PREDICT,
        ("config.json", f"dim={ABSURD}", "expected a size from 1 to 16,384", "correct"),
        field("text_adapter", dim=ABSURD),
    ),
    Case(
        "text width of the aligner is absurd",
        PREDICT,
        ("config.json", "text_dim=1000000000", "expected a size from 1 to 65,536", "correct"),
        field("vision_adapter", text_dim=10**9),
    ),
    Case(
        "adapter scale is NaN",
        PREDICT,
        ("config.json", "scale=nan", "expected a finite number"),
        field("vision_adapter", scale=float("nan")),
    ),
    Case(
        "adapter dropout is above 1",
        PREDICT,
        ("config.json", "cross_attention_dropout=1.5", "expected a value in [0, 1)"),
        field("vision_adapter", cross_attention_dropout=1.5),
    ),
    Case(
        "adapter config has an unknown field",
        PREDICT,
        ("config.json", "vision_adapter.dimm", "expected a field of DenseAlignerConfig", "correct or remove"),
        field("vision_adapter", dimm=16),
    ),
    Case(
        "adapter of an unknown type",
        PREDICT,
        ("config.json", "vision_adapter.peft_type", "'WIDE_ALIGNER'", "DENSE_ALIGNER", "import the module"),
        field("vision_adapter", peft_type="WIDE_ALIGNER"),
    ),
    Case(
        "adapter pattern is not a regular expression",
        PREDICT,
        ("config.json", "target_modules='('", "expected a regular expression", "correct"),
        field("vision_adapter", target_modules="(", layers_to_transform=None),
    ),
    Case(
        "adapter in a block that does not exist",
        PREDICT,
        ("layers_to_transform", "expected blocks 0 to", "counted from 0"),
        field("vision_adapter", layers_to_transform=[0, 77]),
    ),
    Case(
        "adapter config of another type",
        PREDICT,
        ("vision_adapter/adapter_config.json", "expected peft_type 'DENSE_ALIGNER'", "same checkpoint"),
        edit_json(f"{BEST}/vision_adapter/adapter_config.json", peft_type="LORA"),
    ),
    Case(
        "adapter config file is a list",
        PREDICT,
        ("text_adapter/adapter_config.json", "expected peft_type 'TEXT_ADAPTER'", "same checkpoint"),
        write(f"{BEST}/text_adapter/adapter_config.json", [1]),
    ),
    Case(
        "adapter width option is negative",
        f"{TRAIN} --vision_adapter.dim -16",
        ("dim=-16", "expected a positive multiple of 16"),
    ),
    Case(
        "adapter width in YAML is text",
        f"{TRAIN} --config adapters.yaml",
        ("vision_adapter.dim", "int"),
        write("adapters.yaml", "vision_adapter: {dim: wide}\n"),
    ),
]
