"""Full tuning: checkpoints that contain both encoders."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel, Trainer

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.checkpoints import contents, logits, make
from tests.helpers.tiny_models import perturb, tiny_config
from tests.modeling.test_transformers_trainer import Rows, arguments

FULL = {"vision_adapter": None, "text_adapter": None, "train_backbones": True}


@pytest.fixture
def tuned(backbones):
    """A model whose encoders differ from the pretrained ones."""
    model = make(backbones, **FULL)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def test_all_weights_are_trained_except_clips_position_table(backbones):
    model = make(backbones, **FULL)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["text_model.text_model.embeddings.position_embedding.weight"]
    assert model.train().vision_model.training
    assert not model.eval().vision_model.training


def test_a_checkpoint_contains_the_encoders_and_can_be_moved(tuned, tmp_path):
    tuned.save_pretrained(tmp_path / "run")
    assert {f for f in contents(tmp_path / "run") if "/" in f} == {
        "vision_backbone/config.json",
        "vision_backbone/model.safetensors",
        "text_backbone/config.json",
        "text_backbone/model.safetensors",
    }
    shutil.move(tmp_path / "run", tmp_path / "moved")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "moved")
    assert torch.equal(logits(loaded), logits(tuned))
    loaded.save_pretrained(tmp_path / "moved")  # over itself
    again = DetrisForReferringSegmentation.from_pretrained(tmp_path / "moved")
    assert torch.equal(logits(again), logits(tuned))


def test_the_encoders_are_folders_of_transformers(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    for cls, kind in ((Dinov2WithRegistersModel, "vision"), (CLIPTextModelWithProjection, "text")):
        encoder, own = cls.from_pretrained(tmp_path / f"{kind}_backbone"), getattr(tuned, f"{kind}_model")
        assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), own.parameters(), strict=True))


def test_the_encoders_keep_their_dtype(backbones, tmp_path):
    """Their config may name the dtype in which they were loaded, before they were converted."""
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision", dtype=torch.bfloat16).float()
    text = CLIPTextModelWithProjection.from_pretrained(backbones / "text").to(torch.bfloat16)
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config(**FULL))
    perturb(model)
    model.eval().save_pretrained(tmp_path)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path)
    assert (loaded.vision_model.dtype, loaded.text_model.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(logits(loaded), logits(model))


def test_an_encoder_with_adapters_or_quantized_weights_is_refused(backbones):
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(backbones / "text")
    adapted = get_peft_model(vision, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="backbone without adapters, got one that already has some"):
        DetrisForReferringSegmentation.from_backbones(adapted, text, tiny_config(**FULL))
    norm = text.text_model.final_layer_norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"train_backbones: expected .* got a quantized one .*final_layer_norm.weight"
    ):
        DetrisForReferringSegmentation.from_backbones(adapted.unload(), text, tiny_config(**FULL))


def test_the_card_says_that_the_encoders_are_included(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "All of their weights were trained" in card
    assert "frozen" not in card


def test_another_encoder_is_refused(tuned, backbones, tmp_path):
    tuned.save_pretrained(tmp_path)
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    with pytest.raises(ValueError, match=r"vision_model: expected None, because .* contains the trained encoder"):
        DetrisForReferringSegmentation.from_pretrained(tmp_path, vision_model=vision)


@pytest.mark.parametrize("name", ["vision_backbone/model.safetensors", "text_backbone/config.json"])
def test_a_missing_file_is_named(tuned, tmp_path, name):
    tuned.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=name.partition("/")[0]) as error:
        DetrisForReferringSegmentation.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_an_encoder_of_another_checkpoint_is_refused(tuned, backbones, tmp_path):
    tuned.save_pretrained(tmp_path / "run")
    shutil.copy(backbones / "vision" / "model.safetensors", tmp_path / "run" / "vision_backbone")
    with pytest.raises(ValueError, match=r"vision_backbone/model\.safetensors"):
        DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("first", ["adapters", "full"])
def test_a_checkpoint_of_the_other_kind_is_replaced(backbones, tmp_path, first):
    models = {"adapters": make(backbones), "full": make(backbones, **FULL)}
    second = "full" if first == "adapters" else "adapters"
    models[first].save_pretrained(tmp_path)
    models[second].save_pretrained(tmp_path)
    assert (tmp_path / "vision_backbone").exists() == (second == "full")
    assert (tmp_path / "vision_adapter").exists() == (second == "adapters")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path)), logits(models[second]))


def test_gathered_weights_are_saved(tuned, tmp_path):
    state = {key: value + 1 if value.is_floating_point() else value for key, value in tuned.state_dict().items()}
    tuned.save_pretrained(tmp_path, state_dict=state)
    saved = load_file(tmp_path / "vision_backbone" / "model.safetensors")
    assert torch.equal(saved["embeddings.cls_token"], state["vision_model.embeddings.cls_token"])
    del state["vision_model.embeddings.cls_token"]
    with pytest.raises(ValueError, match=r"expected all weights .*vision_model.embeddings.cls_token"):
        tuned.save_pretrained(tmp_path, state_dict=state)


def test_the_trainer_of_transformers_resumes(backbones, tmp_path):
    def train(folder, steps, resume=None):
        torch.manual_seed(0)
        model = make(backbones, **FULL)
        Trainer(model, arguments(folder, max_steps=steps, save_steps=1), train_dataset=Rows()).train(resume)
        return model

    whole = train(tmp_path / "whole", 2)
    resumed = train(tmp_path / "whole", 2, str(tmp_path / "whole" / "checkpoint-1"))
    assert torch.equal(logits(resumed.eval()), logits(whole.eval()))
