"""RRSIS-D (Liu et al., 2024) in the layout of https://github.com/Lsan2401/RMSIN, read by the REFER reader."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from detris_peft.data import DataSource, decode_mask
from detris_peft.data.readers import find_reader

SIDE = 40


def _target(number):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[5 : 15 + number, 8:20] = 1
    return mask


@pytest.fixture
def source(tmp_path):
    """Two images, each with one target and one sentence; the segmentation is a list of one RLE."""
    images, annotations, references = [], [], []
    folder = tmp_path / "images" / "rrsisd" / "JPEGImages"
    folder.mkdir(parents=True)
    (tmp_path / "images" / "train2014").mkdir()  # of another dataset
    for number, split in enumerate(("train", "test"), 1):
        name = f"{number:05d}.jpg"
        Image.new("RGB", (SIDE, SIDE)).save(folder / name)
        rle = coco.encode(np.asfortranarray(_target(number)))
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 3,
                "bbox": [8, 5, 12, 10 + number],
                "iscrowd": 0,
                "segmentation": [{"size": rle["size"], "counts": rle["counts"].decode()}],
            }
        )
        sentence = f"The airplane number {number}"
        references.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "category_id": 3,
                "file_name": name,
                "split": split,
                "sent_ids": [number],
                "sentences": [
                    {"sent_id": number, "raw": sentence, "sent": sentence.lower(), "tokens": sentence.lower().split()}
                ],
            }
        )
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps(references))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "airplane"}]}
    (tmp_path / "rrsisd" / "instances.json").write_text(json.dumps(content))
    return DataSource("rrsisd", str(tmp_path))


def test_images_and_masks_are_found(source):
    assert find_reader(source).name == "refer"
    assert source.splits() == ["train", "test"]
    for number, split in enumerate(source.splits(), 1):
        row = source.load(split)[0]
        assert row["sentences"] == [f"the airplane number {number}"]
        assert row["image"].size == (SIDE, SIDE)
        assert np.array_equal(decode_mask(row["mask"]), _target(number))
