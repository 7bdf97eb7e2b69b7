"""Backbone options shared by the commands: Hugging Face names, folders, or original files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = ("vision", "text")


@dataclass
class BackboneArguments:
    """Options that select the backbones."""

    vision_model: str | None = field(default=None, metadata={"help": "image encoder: folder or Hub id"})
    text_model: str | None = field(default=None, metadata={"help": "text encoder: folder or Hub id"})
    dino: str | None = field(
        default=None, metadata={"help": "image encoder: original file dinov2_vit*14_reg4_pretrain.pth"}
    )
    clip: str | None = field(default=None, metadata={"help": "text encoder: original CLIP file of OpenAI"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "tokenizer: folder or Hub id; default: that of the text encoder"}
    )


def move_backbone_name(given: dict[str, Any], arguments: Any, kind: str) -> None:
    """Move the name of an encoder from the fields of `DetrisConfig` to the option `--vision_model` or `--text_model`.

    Args:
        given: the given options of `DetrisConfig`; `vision_name_or_path` or `text_name_or_path` is removed.
        arguments: a dataclass with the fields `vision_model` and `text_model`.
        kind: `"vision"` or `"text"`.

    Raises:
        ValueError: both are given, and they differ.
    """
    name, option = given.pop(f"{kind}_name_or_path", None), getattr(arguments, f"{kind}_model")
    if name and option and name != option:
        raise ValueError(f"expected --{kind}_model or --{kind}_name_or_path, got both; remove one of them.")
    setattr(arguments, f"{kind}_model", option or name)
