"""The model card: metadata as huggingface_hub reads it, results, and code that runs."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.modeling.model_card import TrainingResults, model_card, write_model_card
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.tiny_models import image_encoder, text_encoder, tiny_config

RESULTS = TrainingResults(
    {"mIoU": 0.7512345678, "oIoU": 0.6, "Pr@0.5": 0.9, "gIoU": 0.5, "N-acc": 0.4, "loss": 0.2, "epoch": 3, "step": 9},
    "refcoco+",
    "testA",
    trained_on=["refcoco", "refcoco+"],
    options={"preset": "detris-b", "epochs": 3, "output_dir": "/home/me/run", "data_root": "/home/me/data"},
)


def named_config(**names):
    config = tiny_config()
    config.vision_name_or_path = names.get("vision", "facebook/dinov2-with-registers-base")
    config.text_name_or_path = names.get("text", "openai/clip-vit-base-patch16")
    return config


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_metadata_is_readable_by_the_hub(tmp_path):
    (tmp_path / "README.md").write_text(model_card(named_config(), RESULTS))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "peft"
    assert data.base_model == ["facebook/dinov2-with-registers-base", "openai/clip-vit-base-patch16"]
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "image-segmentation"
    assert data.license == "apache-2.0"
    assert data.datasets == ["refcoco", "refcocoplus"]
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "mIoU": 0.751235,
        "oIoU": 0.6,
        "Pr@0.5": 0.9,
        "gIoU": 0.5,
        "N-acc": 0.4,
    }
    assert {(r.dataset_name, r.dataset_type, r.dataset_split, r.task_type) for r in results.values()} == {
        ("refcoco+", "refcocoplus", "testA", "image-segmentation")
    }


def test_card_without_results_shows_no_scores():
    card = ModelCard(model_card(named_config()))
    assert card.data.eval_results is None
    assert card.data.get("datasets") is None
    assert "## Results" not in card.text
    assert "## Training" not in card.text


def test_card_shows_results_and_no_local_paths():
    card = model_card(named_config(), RESULTS)
    assert "| mIoU | oIoU | Pr@0.5 | gIoU | N-acc |\n|---|---|---|---|---|\n| 75.12 | 60.00 | 90.00 |" in card
    assert "`testA` of refcoco+" in card
    assert "| epochs | 3 |" in card
    assert "/home/me" not in card
    results = TrainingResults({"mIoU": 0.5}, "/home/me/cups", "val")
    card = ModelCard(model_card(named_config(vision="/home/me/dino", text="./clip"), results))
    assert "/home/me" not in card.content
    assert "./clip" not in card.content
    assert card.data.datasets == ["cups"]
    assert card.data.get("base_model") is None


def test_code_for_peft_contains_the_revision_of_the_backbone():
    config = named_config()
    config.vision_revision = "v1"
    assert 'from_pretrained("facebook/dinov2-with-registers-base", revision="v1")' in model_card(config)


@pytest.mark.parametrize("field", ["vision_adapter", "vision_name_or_path"])
def test_code_for_peft_is_omitted_if_it_could_not_work(field):
    config = named_config()
    assert len(python_blocks(model_card(config))) == 2
    setattr(config, field, None)
    assert len(python_blocks(model_card(config))) == 1


@pytest.mark.parametrize("named", [True, False])
def test_code_runs_with_local_backbones(named, tmp_path, monkeypatch):
    """`test_hub.py` runs it with backbones on the Hub."""
    image_encoder().save_pretrained(tmp_path / "vision")
    text_encoder().save_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
        CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
        tiny_config(),
    )
    names = {}
    if not named:
        model.config.vision_name_or_path = model.config.text_name_or_path = None
        names = {
            "vision_model": Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
            "text_model": CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
        }
    warns = pytest.warns(UserWarning, match="does not name its vision and text backbone")
    with contextlib.nullcontext() if named else warns:
        model.save_pretrained(tmp_path / "run")
    tokenizer = train_tokenizer(["the red mug on the left"], 60)
    DetrisProcessor.from_config(model.config, tokenizer).save_pretrained(tmp_path / "run")
    write_model_card(tmp_path / "run", RESULTS)
    card = (tmp_path / "run/README.md").read_text()
    assert str(tmp_path) not in card
    assert "75.12" in card
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save("photo.jpg")
    (block,) = python_blocks(card)
    exec(block.replace("path/or/repository", "run"), names)
    assert names["mask"].shape == (50, 90)
    assert names["mask"].dtype == torch.bool
