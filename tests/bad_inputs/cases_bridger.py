"""Bridger configs that are wrong, on the command line, in options files and in checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Prepare, edit_json, steps, write

CONFIG = "run/best/config.json"
PREDICT = "predict --checkpoint run/best --image photo.png --text square --output out.png"
TRAIN = "train --preset tiny --data_root data --dataset refshapes --output_dir new --epochs 1 --batch_size 2"
FIRST = {"dim": 16, "vision_after_blocks": [0], "text_after_blocks": [0]}


def remove(name: str) -> Prepare:
    """Return a function that removes a folder."""

    def prepare(folder: Path) -> None:
        shutil.rmtree(folder / name)

    return prepare


def in_checkpoint(name: str, *expected: str, **bridger: Any) -> Case:
    """Return a case of a checkpoint whose config has this Bridger."""
    change = edit_json(CONFIG, vision_adapter=None, bridger={**FIRST, **bridger})
    return Case(f"checkpoint, bridger {name}", PREDICT, ("config.json", *expected), change)


CASES = [
    in_checkpoint(
        "lists of unequal length", "bridger.text_after_blocks", "got 2 and 1", "one pair", text_after_blocks=[0, 1]
    ),
    in_checkpoint("block beyond the depth", "bridger.vision_after_blocks=[99]", "0 to", vision_after_blocks=[99]),
    in_checkpoint("block is negative", "text_after_blocks=[-1]", "counted from 0", text_after_blocks=[-1]),
    in_checkpoint("no blocks", "vision_after_blocks=[]", "at least one block", vision_after_blocks=[]),
    in_checkpoint("blocks are text", "text_after_blocks='0'", "expected list[int]", text_after_blocks="0"),
    in_checkpoint("blocks are not in order", "[1, 0]", "increasing order", vision_after_blocks=[1, 0]),
    in_checkpoint("width is NaN", "bridger.dim=nan", "expected int", dim=float("nan")),
    in_checkpoint("width is absurd", "dim", "16,384", "correct", dim=16 * 10**8),
    in_checkpoint("width is no multiple of the heads", "bridger.dim=18", "num_heads=8", dim=18),
    in_checkpoint("has an unknown field", "bridger.dimm", "use dim", dimm=16),
    Case(
        "checkpoint, bridger is a list",
        PREDICT,
        ("config.json", "bridger: expected a BridgerConfig", "got [0]"),
        edit_json(CONFIG, vision_adapter=None, bridger=[0]),
    ),
    Case(
        "checkpoint, bridger with Dense Aligners",
        PREDICT,
        ("config.json", "bridger: expected an image adapter", "DenseAlignerConfig", "or None"),
        edit_json(CONFIG, bridger=FIRST),
    ),
    Case(
        "checkpoint without the bridger's weights",
        PREDICT,
        ("head.safetensors", "missing", "bridger."),
        steps(edit_json(CONFIG, vision_adapter=None, bridger=FIRST), remove("run/best/vision_adapter")),
    ),
    Case(
        "train, bridger beyond the depth",
        f"{TRAIN} --vision_adapter none --bridger '{{vision_after_blocks: [99], text_after_blocks: [0]}}'",
        ("bridger.vision_after_blocks=[99]", "0 to"),
    ),
    Case(
        "train, bridger with Dense Aligners",
        f"{TRAIN} --bridger '{{dim: 16, vision_after_blocks: [0], text_after_blocks: [0]}}'",
        ("bridger: expected an image adapter", "vision_adapter"),
    ),
    Case(
        "options file, bridger is a number",
        "train --config options.yaml",
        ("options.yaml", "bridger", "expected dict"),
        write("options.yaml", "preset: tiny\ndata_root: data\ndataset: refshapes\noutput_dir: new\nbridger: 3\n"),
    ),
]
