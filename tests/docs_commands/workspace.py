"""The folder in which the commands of the documents run: what a reader has there, at the smallest sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from transformers import BertTokenizerFast  # type: ignore[attr-defined]

from detris_peft.conversion import load_official_checkpoint
from detris_peft.data.refshapes import write_refshapes
from tests.data.tools.split_files import photo
from tests.helpers.reference import FIXTURES, reference_config
from tests.helpers.tiny_models import image_encoder, text_encoder

from .extraction import CHECKOUT

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "left", "car", "person", "dog", "on", "of"]
_EXPERIMENT = """
reference: plain
seeds: [0]
splits: [val]
common: {preset: tiny, dataset: refcoco, data_root: DATA}
arms:
  plain: {vision_adapter: null, text_adapter: null}
"""


def write_workspace(folder: Path) -> Path:
    """Write everything but the trained checkpoints, which `detris` writes."""
    for name in ("examples", "docs/experiments"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    _write_refcoco(folder / "DATA")
    for copy in ("data", "quickstart/data"):
        shutil.copytree(folder / "DATA", folder / copy)
    _write_photos(folder)
    _write_flowers(folder / "flowers")
    _write_coco(folder / "street")
    _write_labelme(folder / "garden")
    _write_table(folder)
    for split in ("train", "val"):
        shutil.copy(folder / f"street/{split}.json", folder)
        shutil.copytree(folder / "street" / split, folder / split)
    for copy in ("described", "half"):
        shutil.copytree(folder / "flowers", folder / copy)
    (folder / "mine.yaml").write_text(_EXPERIMENT)
    image_encoder("dinov2", patch_size=14, image_size=28).save_pretrained(folder / "dinov2-small")
    text_encoder("bert").save_pretrained(folder / "minilm")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(_WORDS)}).save_pretrained(folder / "minilm")
    _write_official(folder)
    return folder


def _write_refcoco(root: Path) -> None:
    """Write RefShapes, and the same under the names of the real datasets."""
    write_refshapes(root, train=6, val=3, test=2, image_size=48)
    for name in ("refcoco", "refcoco+"):
        shutil.copytree(root / "refshapes", root / name)


def _write_photos(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "pairs.csv").write_text("image,text\nphoto.jpg,the red car\nphotos/1.jpg,the dog\n")


def _write_flowers(folder: Path) -> None:
    """Write a folder dataset, as in docs/your-own-data.md."""
    for split, color in (("train", "red"), ("val", "blue")):
        (folder / split / "masks").mkdir(parents=True)
        lines = []
        for i in range(4):
            box = (4 + 4 * i, 8, 20 + 4 * i, 30)
            for mode, file, ink in (("RGB", f"{i}.jpg", color), ("L", f"masks/{i}.png", 255)):
                image = Image.new(mode, (60, 40))
                ImageDraw.Draw(image).rectangle(box, fill=ink)
                image.save(folder / split / file)
            lines.append({"file_name": f"{i}.jpg", "sentences": ["the left rose"], "mask_file_name": f"masks/{i}.png"})
        (folder / split / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _write_coco(folder: Path) -> None:
    """Write COCO instances files without sentences, with their images in a folder per split."""
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}]
    for first, split in ((0, "train"), (10, "val")):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(first, first + 4):
            image = photo(i).resize((60, 40))
            for kind, x in ((1, 2 + i % 3), (2, 34)):
                box = (x, 10, x + 20, 34)
                ImageDraw.Draw(image).rectangle(box, fill="red" if kind == 1 else "white")
                polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
                annotation = {"id": 2 * i + kind, "image_id": i, "category_id": kind, "segmentation": [polygon]}
                annotations.append({**annotation, "bbox": [x, 10, 20, 24], "area": 480, "iscrowd": 0})
            image.save(folder / split / f"{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def _write_labelme(folder: Path) -> None:
    """Write LabelMe's JSON files next to their images."""
    folder.mkdir()
    for number in range(12):
        image = photo(20 + number).resize((60, 40))
        shapes = []
        for label, x in (("rose", 4 + number % 3), ("tulip", 34)):
            points = [[x, 8], [x + 20, 8], [x + 20, 32], [x, 32]]
            ImageDraw.Draw(image).rectangle((x, 8, x + 20, 32), fill="red" if label == "rose" else "white")
            shapes.append({"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}})
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{number}.jpg", "imageData": None}
        (folder / f"{number}.json").write_text(json.dumps({**content, "imageHeight": 40, "imageWidth": 60}))
        image.save(folder / f"{number}.jpg")


def _write_table(folder: Path) -> None:
    """Write a CSV file with the columns of docs/your-own-data.md."""
    image = photo(50).resize((60, 40))
    image.save(folder / "0001.jpg")
    rows = "0001.jpg;the left rose;[[10, 20], [40, 22], [30, 36]]\n0001.jpg;the tulip;[[1, 1], [9, 1], [9, 9]]\n"
    (folder / "labels.csv").write_text(f"img;caption;polygon\n{rows}")


def _write_official(folder: Path) -> None:
    """Write a checkpoint in the layout of the authors, its architecture, and its backbones."""
    shutil.copy(FIXTURES / "tiny_checkpoint.pth", folder / "detris_b_refcoco.pth")
    model = load_official_checkpoint(folder / "detris_b_refcoco.pth", reference_config())
    for kind in ("vision", "text"):
        getattr(model, f"{kind}_model").unload().save_pretrained(folder / "official" / kind)
    (folder / "official/config.json").write_text(reference_config().to_json_string(use_diff=False))
