"""Segment what a sentence refers to in one picture.

    python examples/predict.py --checkpoint runs/detris/best --image photo.jpg --text "the man with the glass"

Writes the picture with the mask laid over it, and the mask itself (255 inside, 0 outside), both as PNG.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import HfArgumentParser

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.visualization import overlay


@dataclass
class PredictionArguments:
    checkpoint: str = field(metadata={"help": "folder or Hub repository of a trained model"})
    image: str = field(metadata={"help": "the picture"})
    text: str = field(metadata={"help": "the sentence"})
    output: str = field(
        default="prediction.png", metadata={"help": "overlay PNG; the mask goes beside it, as *_mask.png"}
    )
    threshold: float | None = field(default=None, metadata={"help": "probability; by default the checkpoint's"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"})


def main() -> None:
    arguments = HfArgumentParser(
        PredictionArguments, description=__doc__.splitlines()[0]
    ).parse_args_into_dataclasses()[0]
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    image = open_picture(arguments.image)
    processor = DetrisProcessor.from_pretrained(arguments.checkpoint)
    model = DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint).to(device)

    inputs = processor(images=image, text=arguments.text)
    with torch.no_grad():
        outputs = model(inputs["pixel_values"].to(device), inputs["input_ids"].to(device))
    mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"], arguments.threshold)[0]

    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    mask_file = output.with_name(f"{output.stem}_mask.png")
    overlay(image, mask).save(output, format="PNG")
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(mask_file, format="PNG")
    print(f"{100 * mask.float().mean():.1f} % of the picture is in the mask; wrote {output} and {mask_file}")


def open_picture(file: str) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no picture {file}.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be decoded as a picture: {error}") from None
    return ImageOps.exif_transpose(image)  # as the eye sees it, so that the overlay fits


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
