"""How much new adapters change the features of pretrained encoders before the first training step.

    python benchmarks/initial_features.py --vision_model dinov2-small --text_model minilm --images FOLDER

For each start, the mean over the images of the relative change |x' - x| / |x| and of the cosine similarity of patches,
for each feature map that the head reads (`extract_layers`, then the last block), and of the text states. Numbers are
those of one seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor

STARTS = {
    "identity": {"init_weights": "identity"},
    "published": {},
    "published, scale 0.02": {"scale": 0.02},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--vision_model", required=True, help="folder or Hub id of the image encoder")
    parser.add_argument("--text_model", required=True, help="folder or Hub id of the text encoder")
    parser.add_argument("--images", required=True, type=Path, help="folder of JPEG files")
    parser.add_argument("--number", type=int, default=16, help="number of images")
    parser.add_argument("--text", default="the person on the left", help="sentence")
    parser.add_argument("--image_size", type=int, default=154, help="side of the images in pixels")
    arguments = parser.parse_args()
    if not any(arguments.images.glob("*.jpg")):
        parser.error(f"--images: expected a folder of .jpg files, got {arguments.images}; correct the path.")
    plain_text, plain_maps = encode(arguments, None)
    print("| start | text states | feature maps | cosine of patches |\n|---|---|---|---|")
    for name, fields in STARTS.items():
        text, maps = encode(arguments, fields)
        changes = [relative_change(new, old) for new, old in zip(maps, plain_maps, strict=True)]
        cosines = [
            torch.nn.functional.cosine_similarity(new.flatten(2), old.flatten(2), dim=1).mean().item()
            for new, old in zip(maps, plain_maps, strict=True)
        ]
        cells = (", ".join(f"{value:.2f}" for value in values) for values in (changes, cosines))
        print(f"| {name} | {relative_change(text, plain_text):.2f} | {' | '.join(cells)} |")


def encode(arguments: argparse.Namespace, fields: dict | None) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return text states and feature maps, with adapters of these fields, or without adapters for None."""
    vision, text = (AutoModel.from_pretrained(name) for name in (arguments.vision_model, arguments.text_model))
    config = DetrisConfig().scaled_to(vision.config, text.config)
    config.image_size = arguments.image_size
    for name in ("vision_adapter", "text_adapter"):
        for field, value in (fields or {}).items():
            setattr(getattr(config, name), field, value)
        if fields is None:
            setattr(config, name, None)
    torch.manual_seed(0)
    model = DetrisForReferringSegmentation.from_backbones(vision, text, config).eval()
    processor = DetrisProcessor.from_config(model.config, AutoTokenizer.from_pretrained(arguments.text_model))
    files = sorted(arguments.images.glob("*.jpg"))[: arguments.number]
    images = [Image.open(file).convert("RGB") for file in files]
    inputs = processor(images=images, text=[arguments.text] * len(images))
    with torch.no_grad():
        text_states, _, maps = model.encode(inputs["pixel_values"], inputs["input_ids"])
    return text_states, maps


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """Return the mean of |new - old| / |old| over a batch (B, ...)."""
    return ((new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)).mean().item()


if __name__ == "__main__":
    main()
