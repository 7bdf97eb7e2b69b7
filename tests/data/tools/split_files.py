"""Writes small folders with metadata.jsonl whose images have different content, and divides them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detris_peft.data.sources import DataSource
from detris_peft.data.tools.split import split_dataset

HEIGHT, WIDTH = 60, 80


def photo(number: int) -> Image.Image:
    """Return an image of large soft blobs, different for each number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def write_photos(folder: Path, images, references: int = 1, **fields) -> Path:
    """Write one split of a folder dataset; return its root.

    Args:
        folder: folder of the split.
        images: images by file name.
        references: references per image.
        fields: further fields of each line.
    """
    (folder / "masks").mkdir(parents=True)
    lines = []
    for name, image in images.items():
        image.save(folder / name)
        for number in range(references):
            mask = np.zeros((image.height, image.width), np.uint8)
            mask[5 + number : 20, 5:30] = 255
            mask_name = f"masks/{Path(name).stem}-{number}.png"
            Image.fromarray(mask).save(folder / mask_name)
            line = {"file_name": name, "sentences": [f"the blob {number} of {name}"], "mask_file_name": mask_name}
            lines.append(json.dumps({**line, **fields}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder.parent


def photos(count: int, start: int = 0) -> dict[str, Image.Image]:
    return {f"{number:03}.png": photo(number) for number in range(start, start + count)}


def divide(root: Path, output: Path | None = None, **options):
    output = output or root.parent / "out"
    return split_dataset(DataSource(str(root)), output, progress=False, **{"overwrite": True, **options})


def lines(output: Path) -> dict[str, list[dict]]:
    """Return the lines of each split."""
    return {
        file.parent.name: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in sorted(output.glob("*/metadata.jsonl"))
    }
