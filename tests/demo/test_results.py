"""What the page shows and offers for download."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
from PIL import Image

from detris_peft.demo.results import caption, display_image, json_file, mask_iou, masks_file
from detris_peft.prediction import Prediction


def prediction(text, columns):
    probabilities = np.zeros((20, 40), np.float32)
    probabilities[:, columns] = 0.8
    return Prediction.from_probabilities(text, probabilities, 0.5)


FOUND, NOTHING = prediction("Der  linke/Löwe?", slice(0, 10)), prediction("x" * 90, slice(0, 0))


def test_one_mask_is_a_png_and_several_are_a_zip_file():
    name, content = masks_file([FOUND])
    assert name == "mask.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), FOUND.mask * np.uint8(255))
    name, content = masks_file([FOUND, NOTHING, FOUND])
    assert name == "masks.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        assert names == ["01_der-linke-l-we.png", f"02_{'x' * 40}.png", "03_der-linke-l-we.png"]
        assert np.asarray(Image.open(archive.open(names[1]))).max() == 0


def test_json_has_the_records_of_predict():
    name, content = json_file([FOUND, NOTHING], "photo.png")
    assert name == "predictions.json"
    assert json.loads(content) == [p.to_json("photo.png") for p in (FOUND, NOTHING)]


def test_captions_give_score_or_no_target():
    assert caption(FOUND) == "Der  linke/Löwe? · score 0.80"
    assert caption(NOTHING, "best") == f"best: {'x' * 90} · no target"


def test_display_images_have_the_size_of_the_page():
    for size, expected in (((40, 20), (480, 240)), ((4000, 20), (1024, 5)), ((600, 500), (600, 500))):
        shown = display_image(
            Image.new("RGB", size), Prediction.from_probabilities("a", np.ones(size[::-1], np.float32), 0.5)
        )
        assert shown.size == expected


def test_iou_of_two_masks():
    left, half, empty = (prediction("a", slice(0, stop)).mask for stop in (10, 20, 0))
    assert mask_iou(left, half) == 0.5
    assert mask_iou(left, empty) == 0
    assert mask_iou(empty, empty) == 1
