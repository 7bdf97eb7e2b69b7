"""Fixtures of the tests of checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import make
from tests.helpers.tiny_models import image_encoder, text_encoder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Path:
    """A folder with the backbones `vision/` and `text/`."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(1)
    image_encoder().save_pretrained(folder / "vision")
    text_encoder().save_pretrained(folder / "text")
    return folder


@pytest.fixture
def saved(backbones, tmp_path):
    """A model and its checkpoint folder, next to a copy of its backbones."""
    shutil.copytree(backbones, tmp_path / "backbones")
    model = make(tmp_path / "backbones")
    model.save_pretrained(tmp_path / "runs" / "one")
    return model, tmp_path / "runs" / "one"
