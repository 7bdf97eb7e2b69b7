"""The authors' released checkpoints: into a folder of adapters and head, and back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, HfArgumentParser

from .. import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor, presets
from ..conversion.official_checkpoint import compare_backbone, load_official_checkpoint, save_official_checkpoint
from .backbone_options import BackboneArguments, load_backbone, name_backbones


@dataclass
class ConvertArguments:
    output: str = field(metadata={"help": "folder to write; with --to-official, the .pth"})
    preset: str | None = field(default=None, metadata={"help": "architecture: " + ", ".join(presets.list())})
    config: str | None = field(default=None, metadata={"help": "architecture: the config.json of a DetrisConfig"})
    verify_backbones: bool = field(
        default=False, metadata={"help": "compare the frozen weights in the file with the named backbones"}
    )
    to_official: bool = field(default=False, metadata={"help": "the other way: CHECKPOINT is a folder of ours"})
    overwrite: bool = field(default=False, metadata={"help": "with --to-official: replace the file if it is there"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    classes: Any = (ConvertArguments, BackboneArguments)
    parser = HfArgumentParser(classes, prog=prog, description=__doc__)
    parser.add_argument("checkpoint", help="the authors' .pth; with --to-official, a folder of ours")
    arguments, backbones, rest = parser.parse_args_into_dataclasses(argv)
    (to_official if arguments.to_official else from_official)(rest.checkpoint, arguments, backbones)


def from_official(checkpoint: str, arguments: ConvertArguments, backbones: BackboneArguments) -> None:
    config, output = read_config(arguments), Path(arguments.output)
    model = load_official_checkpoint(checkpoint, config, mmap=True)
    config = model.config
    tokenizer = backbones.tokenizer or backbones.text_model or config.text_name_or_path
    name_backbones(config, backbones, output.with_name(f"{output.name}-backbones"))
    model.save_pretrained(output)
    del model
    print(f"wrote {output}: adapters and head, over {config.vision_name_or_path} and {config.text_name_or_path}")
    try:
        if not tokenizer:
            raise OSError("no text backbone is named")
        DetrisProcessor.from_config(config, AutoTokenizer.from_pretrained(tokenizer)).save_pretrained(output)
    except (OSError, ValueError) as error:
        print(f"left out the processor's files, give --tokenizer: {str(error).splitlines()[0]}")
    if arguments.verify_backbones:
        verify(checkpoint, config)


def verify(checkpoint: str, config: DetrisConfig) -> None:
    wrong = 0
    for kind in ("text", "vision"):  # one at a time, for the memory's sake
        weights = load_backbone(config, kind).state_dict()
        differences = compare_backbone(checkpoint, config, kind, weights)
        for name, difference in differences.items():
            if difference != 0:
                print(f"{kind} {name}: max abs difference {difference:.3g}")
        different = sum(difference != 0 for difference in differences.values())
        print(f"{kind} backbone: {len(differences) - different} of {len(differences)} weights are equal")
        wrong += different
    if wrong:
        raise ValueError(f"{wrong} frozen weights in {checkpoint} differ from the named backbones.")


def to_official(folder: str, arguments: ConvertArguments, backbones: BackboneArguments) -> None:
    output = Path(arguments.output)
    if arguments.preset or arguments.config:
        raise ValueError("--to-official takes the architecture from the folder: leave out --preset and --config.")
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output} is there already: give --overwrite to replace it.")
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint folder of ours: it holds no config.json.")
    config = DetrisConfig.from_pretrained(folder)
    name_backbones(config, backbones, output.with_name(f"{output.name}-backbones"))
    given = {
        f"{kind}_model": load_backbone(config, kind)
        for kind, sources in {"vision": ("vision_model", "dino"), "text": ("text_model", "clip")}.items()
        if any(getattr(backbones, source) for source in sources)
    }
    save_official_checkpoint(DetrisForReferringSegmentation.from_pretrained(folder, **given), output)
    print(f"wrote {output}")


def read_config(arguments: ConvertArguments) -> DetrisConfig:
    if (arguments.preset is None) == (arguments.config is None):
        raise ValueError("Give the architecture as --preset or as --config, one of them.")
    if arguments.preset is not None:
        return presets.get(arguments.preset)
    file = Path(arguments.config or "")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a config: {error}") from None
    if not isinstance(content, dict) or content.get("model_type") != DetrisConfig.model_type:
        raise ValueError(f"{file} is not of a {DetrisConfig.model_type!r} model.")
    return DetrisConfig.from_dict(content)
