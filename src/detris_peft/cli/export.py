"""Export a checkpoint to a file that programs without detris_peft run: torch.export or ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..outputs import check_output_file
from .checkpoint_options import CheckpointArguments
from .parser import CommandParser


@dataclass
class ExportArguments:
    """Options of `detris export`.

    Raises:
        ValueError: a value is not accepted; the message names the option.
    """

    format: Literal["torch_export", "onnx"] = field(
        metadata={"help": "torch_export (a .pt2 file for torch.export.load) or onnx (checked in onnxruntime)"}
    )
    output: str = field(metadata={"help": "file to write, which ends with .pt2 or .onnx"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the square images in pixels; default: the checkpoint's"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing file"})

    def __post_init__(self) -> None:
        check_output_file(self.output, self.overwrite)


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    return CommandParser((CheckpointArguments, ExportArguments), prog=prog, description=__doc__)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris export` with these arguments; default: those of the command line."""
    checkpoint, arguments = create_parser(prog).parse_args_into_dataclasses(argv)

    from ..export import export_model
    from ..export.checks import check_format, check_image_size
    from .checkpoint_options import load_checkpoint

    check_format(arguments.format, arguments.output, option="--output")
    model, processor = load_checkpoint(checkpoint)
    if arguments.image_size is not None:
        check_image_size(model, arguments.image_size, option="--image_size")
    result = export_model(
        model, processor, arguments.output, arguments.format, arguments.image_size, arguments.overwrite
    )
    if processor.keep_aspect_ratio:
        print("the exported model takes square images; the checkpoint's processor keeps their aspect ratio")
    for file in result.files:
        print(f"wrote {file} ({_size(file)})")
    side, length = result.metadata["image_size"], result.metadata["max_text_length"]
    opset = "" if result.opset is None else f", opset {result.opset}"
    print(
        f"{arguments.format}{opset}: batches of any size, images of {side}x{side} pixels, {length} tokens; largest "
        f"difference from PyTorch: {result.difference:.1e}"
    )


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
