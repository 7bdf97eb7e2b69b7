"""A tiny trained-like checkpoint and a photo, shared by the tests of prediction."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detris_peft.prediction import DetrisPredictor
from tests.helpers import toy_run
from tests.helpers.tiny_models import perturb


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    """The folder of a tiny checkpoint, next to `photo.png` (40×60 pixels)."""
    root = toy_run.write_toys(tmp_path_factory.mktemp("prediction"))
    model = toy_run.load_model(root)
    perturb(model)  # so that the sentence changes the mask
    toy_run.save_checkpoint(root, model)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "photo.png")
    return root / "best"


@pytest.fixture(scope="package")
def photo(checkpoint):
    return checkpoint.parent / "photo.png"


@pytest.fixture(scope="package")
def predictor(checkpoint):
    return DetrisPredictor.from_pretrained(checkpoint, device="cpu", batch_size=3)
