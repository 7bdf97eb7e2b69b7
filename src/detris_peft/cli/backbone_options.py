"""Backbone options shared by the commands: Hugging Face names, folders, or original files."""

from __future__ import annotations

from dataclasses import dataclass, field

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
