"""A tiny checkpoint, the page with it twice, and images that it accepts or refuses."""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import numpy as np
import pytest
from PIL import Image

from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.page_models import PageModel
from detris_peft.prediction import DetrisPredictor
from tests.helpers import toy_run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint whose backbones are in a folder next to it, as after `detris train`."""
    root = toy_run.write_toys(tmp_path_factory.mktemp("demo"))
    model = toy_run.load_model(root)
    toy_run.save_checkpoint(root, model, "run/best")
    return root / "run" / "best"


@pytest.fixture(scope="session")
def predictor(checkpoint):
    return DetrisPredictor.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def models(predictor):
    return [PageModel("run/best", predictor), PageModel("run/last", predictor)]


@pytest.fixture
def limits():
    return DemoLimits(max_megapixels=1, max_sentences=3, max_characters=40, max_upload_mb=1)


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    return write_photo(tmp_path_factory.mktemp("photos") / "photo.png", 0)


def write_photo(file, seed):
    """Write an image that differs for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90 + seed, 60)).save(file)
    return file
