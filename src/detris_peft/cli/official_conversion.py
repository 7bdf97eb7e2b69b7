"""Conversion of released checkpoints to checkpoint folders and back; implements `detris convert`."""

from __future__ import annotations

import os
from pathlib import Path

from .. import presets
from ..conversion.official_checkpoint import compare_backbone, load_official_checkpoint, save_official_checkpoint
from ..errors import one_line
from ..modeling import DetrisConfig, DetrisForReferringSegmentation
from ..modeling.checkpoint import read_config as read_checkpoint_config
from ..outputs import check_output_file, check_output_folder
from ..processing_detris import DetrisProcessor
from ..safe_loading import read_json
from ..tokenization_detris import load_tokenizer
from .backbone_options import BackboneArguments
from .backbone_selection import load_backbone, name_backbones
from .checkpoint_options import check_checkpoint_folder
from .convert_options import ConvertArguments


def from_official(checkpoint: str, arguments: ConvertArguments, backbones: BackboneArguments) -> None:
    """Convert a released `.pth` to a checkpoint folder."""
    config, output = read_config(arguments), Path(os.path.abspath(arguments.output))  # "." has no name
    check_output_folder(arguments.output, arguments.overwrite, kind="checkpoint")
    _check_backbone_folders(output, arguments, backbones)
    model = load_official_checkpoint(checkpoint, config, mmap=True)
    config = model.config
    tokenizer = backbones.tokenizer or backbones.text_model or config.text_name_or_path
    processor, problem = None, "the text backbone has no name"
    if tokenizer:
        try:
            processor = DetrisProcessor.from_config(config, load_tokenizer(tokenizer))
        except ValueError as error:
            if backbones.tokenizer:
                raise
            problem = one_line(error)
    name_backbones(config, backbones, _backbone_folder(output))
    model.save_pretrained(output)
    del model
    print(
        f"wrote {arguments.output}: adapters and head for {config.vision_name_or_path} and {config.text_name_or_path}"
    )
    if processor is None:
        print(f"skipped the processor's files; pass --tokenizer: {problem}")
    else:
        processor.save_pretrained(output)
    if arguments.verify_backbones:
        verify(checkpoint, config)


def verify(checkpoint: str, config: DetrisConfig) -> None:
    """Compare the frozen weights in a released `.pth` with the backbones that a config names.

    Raises:
        ValueError: weights differ.
    """
    num_wrong = 0
    for kind in ("text", "vision"):  # one at a time, to save memory
        weights = load_backbone(config, kind).state_dict()
        differences = compare_backbone(checkpoint, config, kind, weights)
        for name, difference in differences.items():
            if difference != 0:
                print(f"{kind} {name}: max abs difference {difference:.3g}")
        num_different = sum(difference != 0 for difference in differences.values())
        print(f"{kind} backbone: {len(differences) - num_different} of {len(differences)} weights are equal")
        num_wrong += num_different
    if num_wrong:
        raise ValueError(
            f"{checkpoint}: expected the frozen weights of the named backbones, got {num_wrong} that differ; "
            "name the backbones that it was trained with."
        )


def to_official(folder: str, arguments: ConvertArguments, backbones: BackboneArguments) -> None:
    """Convert a checkpoint folder to a `.pth` for the released code."""
    output = Path(os.path.abspath(arguments.output))
    if arguments.preset or arguments.config:
        raise ValueError("--to-official reads the architecture from the folder; omit --preset and --config.")
    check_checkpoint_folder(Path(folder), "CHECKPOINT")
    inputs = tuple(path for path in Path(folder).rglob("*") if path.is_file())
    check_output_file(arguments.output, arguments.overwrite, inputs)
    _check_backbone_folders(output, arguments, backbones)
    config = read_checkpoint_config(Path(folder))
    name_backbones(config, backbones, _backbone_folder(output))
    models = {
        f"{kind}_model": load_backbone(config, kind)
        for kind, options in {"vision": ("vision_model", "dino"), "text": ("text_model", "clip")}.items()
        if any(getattr(backbones, option) for option in options)
    }
    save_official_checkpoint(DetrisForReferringSegmentation.from_pretrained(folder, **models), output)
    print(f"wrote {arguments.output}")


def read_config(arguments: ConvertArguments) -> DetrisConfig:
    """Return the config that --preset or --config selects.

    Raises:
        ValueError: both or neither are given, or the file is not the config of a DETRIS model.
    """
    if (arguments.preset is None) == (arguments.config is None):
        got = "none" if arguments.preset is None else "both"
        raise ValueError(f"expected the architecture as --preset or as --config, got {got}; pass one of them.")
    if arguments.preset is not None:
        return presets.get(arguments.preset)
    file = Path(arguments.config or "")
    content = read_json(file)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != DetrisConfig.model_type:
        raise ValueError(
            f"{file}: expected the config of a {DetrisConfig.model_type!r} model, got model_type {model_type!r}; "
            "pass the config.json of a DetrisConfig."
        )
    config = DetrisConfig.from_dict(content)
    for kind in ("vision", "text"):
        name = getattr(config, f"{kind}_name_or_path")
        if name and name.startswith("."):  # relative to a checkpoint
            config.name_backbone(kind, str((file.parent / name).resolve()))
    return config


def _check_backbone_folders(output: Path, arguments: ConvertArguments, backbones: BackboneArguments) -> None:
    """Raise a ValueError if the folders of converted original backbones must not be written."""
    for option in ("dino", "clip"):
        if getattr(backbones, option):
            folder = _backbone_folder(output) / option
            check_output_folder(folder, arguments.overwrite, f"--{option}", "choose another --output", "backbone")


def _backbone_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}-backbones")
