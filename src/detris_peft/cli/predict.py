"""Segment what a sentence refers to in one image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import HfArgumentParser

from .. import DetrisForReferringSegmentation, DetrisProcessor
from ..visualization import overlay

_TITLE = "Segment what a sentence refers to in one image."


@dataclass
class PredictionArguments:
    checkpoint: str = field(metadata={"help": "folder or Hub repository of a trained model"})
    image: str = field(metadata={"help": "the image"})
    text: str = field(metadata={"help": "the sentence"})
    output: str = field(
        default="prediction.png", metadata={"help": "overlay PNG; the mask goes beside it, as *_mask.png"}
    )
    threshold: float | None = field(default=None, metadata={"help": "probability; by default the checkpoint's"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"})


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    arguments = HfArgumentParser(
        cast(Any, PredictionArguments), prog=prog, description=_TITLE
    ).parse_args_into_dataclasses(argv)[0]
    if arguments.threshold is not None and not 0 <= arguments.threshold < 1:
        raise ValueError(f"--threshold {arguments.threshold} must be a probability, at least 0 and below 1.")
    device = usable_device(arguments.device)
    image = open_image(arguments.image)
    model = DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint)
    processor = DetrisProcessor.from_pretrained(arguments.checkpoint)
    model.to(device)  # type: ignore[arg-type]  transformers hides nn.Module.to's own type

    inputs = processor(images=image, text=arguments.text)
    with torch.no_grad():
        outputs = model(inputs["pixel_values"].to(device), inputs["input_ids"].to(device))
    mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"], arguments.threshold)[0]

    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    mask_file = output.with_name(f"{output.stem}_mask.png")
    overlay(image, mask).save(output, format="PNG")
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(mask_file, format="PNG")
    print(f"{100 * mask.float().mean():.1f} % of the image is in the mask; wrote {output} and {mask_file}")


def usable_device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def open_image(file: str) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {file}: give the path of a file.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be decoded as a image: {error}") from None
    return ImageOps.exif_transpose(image)  # as the eye sees it, so that the overlay fits
