"""The Python code of README.md and docs/getting-started.md runs as written, with small models."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.reference import FIXTURES
from tests.helpers.tiny_models import image_encoder

from .extraction import python_blocks

README = python_blocks("README.md")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The working directory: a clone after training, in which the checkpoint is a small one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("quickstart/run/best", "runs/b/best"):
        shutil.copytree(FIXTURES / "checkpoint_0.1.0.dev0", folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    for name in ("photo.jpg", "quickstart/data/images/train2014/refshapes_testA_000000.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(name)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "size"),
    [(README[0], (40, 60)), *((code, (40, 60)) for code in python_blocks("docs/getting-started.md"))],
    ids=["README.md", "getting-started: predictor", "getting-started: model and processor"],
)
def test_inference_code_gives_a_mask_of_the_size_of_the_image(code, size, clone):
    scope: dict = {}
    exec(code, scope)
    mask = scope["mask"] if "mask" in scope else scope["prediction"].mask
    assert tuple(mask.shape) == size
    assert mask.dtype in (torch.bool, np.bool_)
    if "overlay.png" in code:
        assert Image.open(clone / "overlay.png").size == size[::-1]


def test_readme_opens_with_six_lines_of_python():
    assert len([line for line in README[0].splitlines() if line.strip()]) == 6


def test_code_for_peft_adapts_an_encoder_of_the_default_depth():
    scope = {
        "dinov2": image_encoder(num_hidden_layers=12),
        "pixel_values": torch.rand(1, 3, 32, 32),
        "text": SimpleNamespace(last_hidden_state=torch.rand(1, 5, 512)),
    }
    exec(README[1], scope)
    assert scope["peft_vision"].peft_config["default"].peft_type == "DENSE_ALIGNER"
    assert scope["features"].last_hidden_state.shape == (1, 17 + 4, 32)
