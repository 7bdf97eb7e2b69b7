"""Options of `detris convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import presets


@dataclass
class ConvertArguments:
    """Options of `detris convert`."""

    output: str = field(metadata={"help": "folder to write; with --to-official, the .pth to write"})
    preset: str | None = field(default=None, metadata={"help": "architecture: " + ", ".join(presets.list_presets())})
    config: str | None = field(default=None, metadata={"help": "architecture: the config.json of a DetrisConfig"})
    verify_backbones: bool = field(
        default=False, metadata={"help": "compare the frozen weights in the file with the named backbones"}
    )
    to_official: bool = field(
        default=False, metadata={"help": "reverse direction: CHECKPOINT is a detris_peft checkpoint folder"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing --output"})
