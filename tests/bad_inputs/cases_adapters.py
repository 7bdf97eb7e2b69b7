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


def adapter(name: str, **fields: Any) -> Prepare:
    """Return a function that replaces an adapter in a checkpoint's config.json."""
    return edit_json(f"{BEST}/config.json", **{name: fields})


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
        ("config.json", "vision_adapter.peft_type", "'DENSE_ALIGNER_2'", "DENSE_ALIGNER", "import the module"),
        field("vision_adapter", peft_type="DENSE_ALIGNER_2"),
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
    Case(
        "bottleneck with an unknown activation",
        PREDICT,
        ("config.json", "vision_adapter.activation='gellu'", "expected one of gelu, quick_gelu, relu", "correct"),
        adapter("vision_adapter", peft_type="BOTTLENECK_ADAPTER", activation="gellu"),
    ),
    Case(
        "bottleneck width is zero",
        PREDICT,
        ("config.json", "text_adapter.dim=0", "expected a size from 1 to 16,384", "correct"),
        adapter("text_adapter", peft_type="BOTTLENECK_ADAPTER", dim=0),
    ),
    Case(
        "compacter with a number of products that does not divide its width",
        PREDICT,
        ("config.json", "text_adapter.phm_dim=4", "expected a divisor of dim=50", "change one of them"),
        adapter("text_adapter", peft_type="COMPACTER", dim=50),
    ),
    Case(
        "compacter with a rank that is text",
        PREDICT,
        ("config.json", "text_adapter.phm_rank='high'", "expected int", "correct"),
        adapter("text_adapter", peft_type="COMPACTER", phm_rank="high"),
    ),
    Case(
        "compacter on an encoder whose width it does not divide",
        f"{TRAIN} --config adapters.yaml",
        ("phm_dim=7", "expected a divisor of", "the width of the encoder", "change it"),
        write("adapters.yaml", "vision_adapter: {peft_type: COMPACTER, dim: 14, phm_dim: 7, phm_rank: 2}\n"),
    ),
    Case(
        "bottleneck on a module that returns no tensor",
        f"{TRAIN} --config adapters.yaml",
        ("target_modules", "expected modules whose output is a tensor", "attention.o_proj"),
        write("adapters.yaml", "vision_adapter: {peft_type: BOTTLENECK_ADAPTER, target_modules: [attention]}\n"),
    ),
]
