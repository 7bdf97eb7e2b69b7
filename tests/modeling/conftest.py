"""Fixtures of the tests of checkpoints."""

from __future__ import annotations

import copy
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


@pytest.fixture(scope="module")
def saved_once(backbones, tmp_path_factory):
    """A model and the folder with `backbones/` and its checkpoint `runs/one/`; tests use `saved`."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(backbones, folder / "backbones")
    torch.manual_seed(0)
    model = make(folder / "backbones")
    model.save_pretrained(folder / "runs" / "one")
    return model, folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A model and its checkpoint folder, next to a copy of its backbones. Tests may change all of them."""
    model, folder = copy.deepcopy(saved_once[0]), saved_once[1]
    for name in ("backbones", "runs"):
        shutil.copytree(folder / name, tmp_path / name)
    for kind in ("vision", "text"):
        model.config.name_backbone(kind, str(tmp_path / "backbones" / kind))
        encoder = getattr(model, f"{kind}_model")
        encoder.get_base_model().name_or_path = encoder.peft_config["default"].base_model_name_or_path = str(
            tmp_path / "backbones" / kind
        )
    return model, tmp_path / "runs" / "one"
