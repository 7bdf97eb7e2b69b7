"""Segment what an expression refers to in one image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import HfArgumentParser

from .. import DetrisForReferringSegmentation, DetrisProcessor
from ..errors import one_line
from ..visualization import overlay


@dataclass
class PredictionArguments:
    """Options of `detris predict`."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of a trained model"})
    image: str = field(metadata={"help": "image file"})
    text: str = field(metadata={"help": "referring expression"})
    output: str = field(
        default="prediction.png",
        metadata={"help": "PNG file for the overlay; the mask is written to *_mask.png"},
    )
    threshold: float | None = field(
        default=None, metadata={"help": "probability above which a pixel is foreground; default: the checkpoint's"}
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: cuda if available, else cpu"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris predict` with these arguments; default: those of the command line."""
    parser = HfArgumentParser(cast(Any, PredictionArguments), prog=prog, description=__doc__)
    arguments = parser.parse_args_into_dataclasses(argv)[0]
    if arguments.threshold is not None and not 0 <= arguments.threshold < 1:
        raise ValueError(
            f"--threshold: expected a probability of at least 0 and below 1, got {arguments.threshold}; change it."
        )
    device = usable_device(arguments.device)
    image = open_image(arguments.image)
    model = DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint)
    processor = DetrisProcessor.from_pretrained(arguments.checkpoint)
    model.to(device)  # type: ignore[arg-type]  transformers hides the type of nn.Module.to

    inputs = processor(images=image, text=arguments.text)
    with torch.no_grad():
        outputs = model(inputs["pixel_values"].to(device), inputs["input_ids"].to(device))
    mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"], arguments.threshold)[0]

    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    mask_file = output.with_name(f"{output.stem}_mask.png")
    overlay(image, mask).save(output, format="PNG")
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(mask_file, format="PNG")
    print(f"{100 * mask.float().mean():.1f}% of the image is foreground; wrote {output} and {mask_file}")


def usable_device(name: str | None) -> torch.device:
    """Return the named device; default: cuda if available, else cpu.

    Raises:
        ValueError: the device is unknown or not available.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error, first_line=True)
        raise ValueError(f"--device {name}: expected an available device ({reason}); choose another one.") from None
    return device


def open_image(file: str) -> Image.Image:
    """Open and decode an image file, and apply its EXIF orientation.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be decoded.
    """
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected an image, found no such file; check the path.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"{file}: expected an image, got a file that cannot be decoded ({error}); pass another file."
        ) from None
    return ImageOps.exif_transpose(image)  # the overlay is drawn on the rotated image, like the mask
