"""Writes small COCO instances files with painted images, and describes them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image, ImageDraw

from detris_peft.data.sources import DataSource
from detris_peft.data.tools.describe import describe_dataset

HEIGHT, WIDTH = 120, 160
NAMES = ("dog", "hot dog", "person", "scissors", "Hündin", "traffic_light", "bus")
COLORS = {"red": (220, 20, 20), "green": (40, 160, 50), "blue": (30, 70, 210), "white": (250, 250, 250)}


def square(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(ann_id, name, box, image_id=1, **changes):
    """An annotation of class `name`, a rectangle (left, top, right, bottom)."""
    category = NAMES.index(name) + 1
    outline = [square(*box)]
    return {"id": ann_id, "image_id": image_id, "category_id": category, "segmentation": outline, **changes}


def write(folder, annotations, pixels=None, **content):
    """Write a COCO file with one image, or with the images of `pixels` by id; return its path."""
    pixels = pixels or {1: np.full((HEIGHT, WIDTH, 3), 128, np.uint8)}
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for image_id, array in pixels.items():
        Image.fromarray(array).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": len(array), "width": len(array[0])})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories, **content}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def describe(file, output=None, **options):
    output = output or file.parent / "out"
    return describe_dataset(DataSource(str(file)), output, progress=False, overwrite=True, **options)


def lines(output, split="train"):
    return [json.loads(line) for line in (output / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def sentences(file, **options):
    """Return all sentences of each annotation that has some, without "the"."""
    describe(file, **{"max_expressions": 100, **options})
    described = lines(file.parent / "out")
    return {line["ann_id"]: {text.removeprefix("the ") for text in line["sentences"]} for line in described}


def painted(*objects, gray=False):
    """Return an image with rectangles (box, color)."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    for box, color in objects:
        ImageDraw.Draw(canvas).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), color)
    return np.asarray(canvas.convert("L").convert("RGB") if gray else canvas)


LEFT, RIGHT = (10, 40, 50, 80), (90, 40, 130, 80)
SPOT = (0, 0, 40, 20), (220, 20, 20)  # without it, the photo is black and white
