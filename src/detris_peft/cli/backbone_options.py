"""Where a command's backbones come from: Hugging Face names, folders, or the original files."""

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


@dataclass
class BackboneArguments:
    vision_model: str | None = field(default=None, metadata={"help": "image encoder: a folder or a Hub name"})
    text_model: str | None = field(default=None, metadata={"help": "text encoder: a folder or a Hub name"})
    dino: str | None = field(default=None, metadata={"help": "image encoder: dinov2_vit*14_reg4_pretrain.pth"})
    clip: str | None = field(default=None, metadata={"help": "text encoder: OpenAI's CLIP archive"})
    tokenizer: str | None = field(default=None, metadata={"help": "folder or Hub name; by default the text encoder's"})


def name_backbones(config: DetrisConfig, arguments: BackboneArguments, folder: Path) -> None:
    """Name the given backbones in the config; original files are written as Hugging Face folders below `folder`.

    Raises:
        ValueError: two sources are given for one backbone, or a file is of another size than the config.
    """
    originals: tuple[tuple[str, str | None, str, Callable[..., PreTrainedModel]], ...] = (
        ("vision", arguments.dino, "dino", load_original_dinov2),
        ("text", arguments.clip, "clip", load_original_clip_text),
    )
    for kind, file, option, load in originals:
        name = getattr(arguments, f"{kind}_model")
        if name and file:
            raise ValueError(f"--{kind}_model and --{option} are both given: choose one.")
        if file:
            model = load(file)
            for field_name in ("hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
                want, got = (getattr(c, field_name, None) for c in (getattr(config, f"{kind}_config"), model.config))
                if want != got:
                    raise ValueError(f"{file} has {field_name}={got}, needed is {want}: take another file or preset.")
            name = str(folder / option)
            with atomic_update_dir(Path(name)) as staging:
                model.save_pretrained(staging)
        config.name_backbone(kind, name)


def load_backbone(config: DetrisConfig, kind: str) -> PreTrainedModel:
    """The plain encoder that a config names."""
    name, architecture = getattr(config, f"{kind}_name_or_path"), getattr(config, f"{kind}_config").architectures[0]
    if not name:
        raise ValueError(f"The {kind} backbone is not named: give --{kind}_model.")
    revision = getattr(config, f"{kind}_revision") or "main"
    try:
        return getattr(transformers, architecture).from_pretrained(name, revision=revision)
    except (OSError, SafetensorError) as error:
        raise OSError(f"The {kind} backbone {name} cannot be loaded: {str(error).splitlines()[0]}") from error
