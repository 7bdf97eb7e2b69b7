"""Backbone options shared by the commands: Hugging Face names, folders, or original files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .. import DetrisConfig
from ..atomic import atomic_update_dir
from ..conversion.original_backbones import load_original_clip_text, load_original_dinov2
from ..errors import one_line


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


def name_backbones(config: DetrisConfig, arguments: BackboneArguments, folder: Path) -> None:
    """Set the names of the selected backbones in a config. Original files are converted to folders below `folder`.

    Raises:
        ValueError: two options select the same backbone, or a file's sizes differ from those in the config.
    """
    originals: tuple[tuple[str, str | None, str, Callable[..., PreTrainedModel]], ...] = (
        ("vision", arguments.dino, "dino", load_original_dinov2),
        ("text", arguments.clip, "clip", load_original_clip_text),
    )
    for kind, file, option, load in originals:
        name = getattr(arguments, f"{kind}_model")
        if name and file:
            raise ValueError(f"expected --{kind}_model or --{option}, got both; choose one.")
        if file:
            model = load(file)
            for field_name in ("hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
                configs = (getattr(config, f"{kind}_config"), model.config)
                expected, got = (getattr(c, field_name, None) for c in configs)
                if expected != got:
                    raise ValueError(
                        f"{file}: expected {field_name}={expected}, got {got}; choose another file or preset."
                    )
            name = str(folder / option)
            with atomic_update_dir(Path(name)) as staging:
                model.save_pretrained(staging)
        config.name_backbone(kind, name)


def load_backbone(config: DetrisConfig, kind: str) -> PreTrainedModel:
    """Load the plain encoder that a config names.

    Args:
        config: configuration of the model.
        kind: `"vision"` or `"text"`.

    Raises:
        ValueError: the config does not name the backbone.
        OSError: the backbone cannot be loaded.
    """
    name, architecture = getattr(config, f"{kind}_name_or_path"), getattr(config, f"{kind}_config").architectures[0]
    if not name:
        raise ValueError(f"expected the name of the {kind} backbone, got none; pass --{kind}_model.")
    revision = getattr(config, f"{kind}_revision") or "main"
    try:
        return getattr(transformers, architecture).from_pretrained(name, revision=revision)
    except (OSError, SafetensorError) as error:
        reason = one_line(error, first_line=True)
        raise OSError(
            f"The {kind} backbone {name} cannot be loaded ({reason}); pass another --{kind}_model."
        ) from error
