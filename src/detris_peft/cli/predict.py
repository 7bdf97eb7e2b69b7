"""Segment what an expression refers to in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..atomic import atomic_write_file
from ..errors import one_line
from ..images import open_image
from ..outputs import check_output_file
from ..processing_detris import DetrisProcessor
from ..text_cleaning import clean_sentence
from ..tokenization_detris import count_tokens
from ..visualization import overlay
from .checkpoint_options import CheckpointArguments, load_checkpoint
from .parser import CommandParser


@dataclass
class PredictionArguments:
    """Options of `detris predict`.

    Raises:
        ValueError: a value is not accepted; the message names the option.
    """

    image: str = field(metadata={"help": "image file"})
    text: str = field(metadata={"help": "referring expression, in quotes"})
    output: str = field(
        default="prediction.png",
        metadata={"help": "PNG file for the overlay; the mask is written to *_mask.png"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace existing files"})
    threshold: float | None = field(
        default=None, metadata={"help": "probability above which a pixel is foreground; default: the checkpoint's"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: a GPU if available, else cpu"}
    )

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(
                f"--threshold: expected a probability of at least 0 and below 1, got {self.threshold}; change it."
            )
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"--text: expected text in UTF-8, got {self.text!r}; set the terminal's encoding to UTF-8."
            ) from None
        clean_sentence(self.text, "--text")
        if not self.image:
            raise ValueError("--image: expected an image file, got an empty name; pass one.")
        check_output_file(self.output, self.overwrite, inputs=(self.image,))
        check_output_file(self.mask_file, self.overwrite, inputs=(self.image,))
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"--output {self.output}: expected a name that ends with .png; change it.")

    @property
    def mask_file(self) -> Path:
        """The file of the mask, next to the overlay."""
        output = Path(self.output)
        return output.with_name(f"{output.stem}_mask.png")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris predict` with these arguments; default: those of the command line."""
    parser = CommandParser((CheckpointArguments, PredictionArguments), prog=prog, description=__doc__)
    checkpoint, arguments = parser.parse_args_into_dataclasses(argv)
    device = usable_device(arguments.device)
    image = open_image(arguments.image)
    model, processor = load_checkpoint(checkpoint)
    model.to(device)  # type: ignore[arg-type]  transformers hides the type of nn.Module.to

    inputs = processor(images=image, text=arguments.text)
    notice = _truncation(processor, arguments.text, inputs["input_ids"][0])
    if notice:
        print(notice)
    with torch.no_grad():
        outputs = model(inputs["pixel_values"].to(device), inputs["input_ids"].to(device))
    mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"], arguments.threshold)[0]

    output, mask_file = Path(arguments.output), arguments.mask_file
    write_prediction(output, overlay(image, mask), mask_file, Image.fromarray(mask.numpy().astype(np.uint8) * 255))
    print(f"{100 * mask.float().mean():.1f}% of the image is foreground; wrote {output} and {mask_file}")


def usable_device(name: str | None) -> torch.device:
    """Return the named device; default: the first accelerator, if there is one, else cpu.

    Raises:
        ValueError: the device is unknown or not available.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return accelerator or torch.device("cpu")
    count = torch.accelerator.device_count() if accelerator else 0
    available = ["cpu", *(f"{accelerator.type}:{i}" for i in range(count) if accelerator)]
    try:
        device = torch.device(name)
        if device.type == "cpu" or f"{device.type}:{device.index or 0}" in available:
            return device
    except RuntimeError:  # not the name of a device
        pass
    raise ValueError(
        f"--device {name}: expected {' or '.join(available)}, got a device that is not available; choose another one."
    )


def _truncation(processor: DetrisProcessor, text: str, input_ids: Any) -> str | None:
    """Return one line that shows what the model reads of a sentence that is too long, or None if it reads all."""
    tokenizer, limit = processor.tokenizer, processor.max_text_length  # type: ignore[attr-defined]
    count = count_tokens(tokenizer, [text])[0]
    if count <= limit:
        return None
    read = tokenizer.decode(input_ids, skip_special_tokens=True)
    return f"--text has {count} tokens, of which the model reads {limit}: {read!r}; shorten it to be read completely."


def write_prediction(output: Path, overlay_image: Image.Image, mask_file: Path, mask_image: Image.Image) -> None:
    """Write the overlay and its mask, both or none.

    A process that is killed in between leaves no overlay: the overlay appears last, so that it is never next to the
    mask of another one.

    Args:
        output: PNG file for the overlay; its folder is created if missing.
        overlay_image: the overlay.
        mask_file: PNG file for the mask.
        mask_image: the mask, 255 inside and 0 outside.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write_file(output) as overlay_part, atomic_write_file(mask_file) as mask_part:
            for part, image in ((overlay_part, overlay_image), (mask_part, mask_image)):
                part.write_bytes(_png(image))
            output.unlink(missing_ok=True)
    except OSError as error:
        written = f"; only {mask_file} was written" if mask_file.exists() and not output.exists() else ""
        reason = error.strerror or one_line(error)
        raise OSError(
            f"--output {output}: cannot be written ({reason}){written}; free some space or choose another path."
        ) from None


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
