"""The backbones that options select, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..conversion.original_backbones import load_original_clip_text, load_original_dinov2
from ..modeling import DetrisConfig
from ..modeling.backbone_folders import recover_backbone, write_backbone
from ..modeling.backbones import load_pretrained_backbone, read_backbone_config
from ..modeling.configuration_detris import backbone_config
from ..modeling.encoders import first_difference
from .backbone_options import KINDS, BackboneArguments

_ORIGINAL_FILES: dict[str, tuple[str, Callable[..., PreTrainedModel]]] = {
    "vision": ("dino", load_original_dinov2),
    "text": ("clip", load_original_clip_text),
}


@dataclass
class Backbone:
    """A selected backbone.

    Attributes:
        name: folder or Hub id; None for a backbone that has to be initialized randomly.
        config: its own config.
        original: the model of an original file, which is not yet written to the folder `name`.
    """

    name: str | None
    config: PreTrainedConfig
    original: PreTrainedModel | None = None

    def write(self, overwrite: bool) -> None:
        """Write the model of an original file to its folder.

        Raises:
            ValueError: the folder holds other weights, on which checkpoints may depend, and `overwrite` is not set.
        """
        if self.original is None:
            return
        folder = Path(self.name or "")
        recover_backbone(str(folder))
        if folder.is_dir() and not overwrite:
            # Not the file's keys: transformers renames them when it saves.
            written = type(self.original).from_pretrained(folder, dtype=self.original.dtype).state_dict()
            weights = self.original.state_dict()
            if weights.keys() == written.keys() and all(torch.equal(weights[name], written[name]) for name in written):
                return
            raise ValueError(
                f"{folder}: expected the weights of the given original file, got those of another one, which the run "
                "in this output_dir depends on; pass the same file, start again with --overwrite, or choose another "
                "output_dir."
            )
        write_backbone(self.original, folder)


def select_backbones(
    preset: DetrisConfig, arguments: BackboneArguments, given: dict[str, Any], folder: Path
) -> dict[str, Backbone]:
    """Return the selected backbones by kind, with the configs that come with them. Nothing is written.

    Args:
        preset: the config whose backbones are used where no option selects another one.
        arguments: the options that select backbones.
        given: given options of `DetrisConfig`: `vision_config` and `vision_revision`, and those of the text encoder.
        folder: folder for original files, to be written by `Backbone.write`.

    Raises:
        ValueError: two options contradict each other, or a backbone cannot be used.
        OSError: a backbone cannot be read.
    """
    backbones = {}
    for kind in KINDS:
        name, original = _select(arguments, kind)
        own_config = given.get(f"{kind}_config")
        name = str(folder / _ORIGINAL_FILES[kind][0]) if original is not None else name
        name = name or getattr(preset, f"{kind}_name_or_path")
        if own_config is not None and name:
            raise ValueError(
                f"--{kind}_config: expected a preset without pretrained backbones, such as tiny, got the backbone "
                f"{name}, which has its own config; remove --{kind}_config."
            )
        if original is not None:
            config: Any = original.config
            config.architectures = [type(original).__name__]  # set by transformers when it is saved
        elif name:
            revision = given.get(f"{kind}_revision") or "main"
            config = read_backbone_config(kind, name, _fix(kind), revision=revision)
        elif own_config is not None:
            config = backbone_config(f"{kind}_config", own_config)
        else:
            config = getattr(preset, f"{kind}_config")
        backbones[kind] = Backbone(name, config, original)
    return backbones


def name_backbones(config: DetrisConfig, arguments: BackboneArguments, folder: Path) -> None:
    """Set the names of the selected backbones in a config. Original files are converted to folders below `folder`.

    Raises:
        ValueError: two options select the same backbone, or a file's sizes differ from those in the config.
    """
    for kind in KINDS:
        name, original = _select(arguments, kind)
        if original is not None:
            option = _ORIGINAL_FILES[kind][0]
            if difference := first_difference(getattr(config, f"{kind}_config"), original.config):
                field_name, expected, got = difference
                raise ValueError(
                    f"{getattr(arguments, option)}: expected {field_name}={expected}, got {got}; choose another file "
                    "or preset."
                )
            name = str(folder / option)
            Backbone(name, original.config, original).write(overwrite=True)
        config.name_backbone(kind, name)


def load_backbone(config: DetrisConfig, kind: str) -> PreTrainedModel:
    """Load the plain encoder that a config names.

    Args:
        config: configuration of the model.
        kind: `"vision"` or `"text"`.

    Raises:
        ValueError: the config does not name the backbone, or weights are missing or unexpected.
        OSError: the backbone cannot be loaded.
    """
    name, architectures = getattr(config, f"{kind}_name_or_path"), getattr(config, f"{kind}_config").architectures
    if not name:
        raise ValueError(f"expected the name of the {kind} backbone, got none; pass --{kind}_model.")
    revision = getattr(config, f"{kind}_revision") or "main"
    return load_pretrained_backbone(kind, name, _fix(kind), architectures[0], revision=revision)


def _select(arguments: BackboneArguments, kind: str) -> tuple[str | None, PreTrainedModel | None]:
    """Return the given name of a backbone, or the model of the given original file."""
    option, load = _ORIGINAL_FILES[kind]
    name, file = getattr(arguments, f"{kind}_model"), getattr(arguments, option)
    if name and file:
        raise ValueError(f"expected --{kind}_model or --{option}, got both; choose one.")
    return name, load(file) if file else None


def _fix(kind: str) -> str:
    return f"pass another --{kind}_model"
