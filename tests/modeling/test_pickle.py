"""Pickles and copies of the complete model. In a new process: test_new_process.py."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config


def make(kind: str = "dinov2_with_registers", **changes) -> DetrisForReferringSegmentation:
    torch.manual_seed(0)
    vision = image_encoder(kind)
    config = tiny_config(vision_config=vision.config, dropout=0.0, **changes)
    model = DetrisForReferringSegmentation.from_backbones(vision, text_encoder(), config)
    perturb(model)
    return model


def batch() -> dict[str, torch.Tensor]:
    return {key: value for key, value in inputs().items() if key != "labels"}


def copies(model):
    return {"pickle": pickle.loads(pickle.dumps(model)), "deepcopy": copy.deepcopy(model)}


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("position_interpolation", ["backbone", "official"])
def test_copies_are_equal_and_independent(kind, position_interpolation):
    model = make(kind, position_interpolation=position_interpolation).eval()
    early = copies(model)
    with torch.no_grad():
        expected = model(**batch()).logits
        for other in [*early.values(), *copies(model).values()]:  # before and after the first forward pass
            assert torch.equal(other(**batch()).logits, expected)
            other.vision_model.get_base_model().embeddings.position_embeddings.zero_()
            assert not torch.equal(other(**batch()).logits, expected)
        assert torch.equal(model(**batch()).logits, expected)
        assert len(model(**batch()).vision_features) == 3  # no hook is registered twice


def test_copies_train_with_gradient_checkpointing():
    model = make()
    model.gradient_checkpointing_enable()
    model(**inputs()).loss.backward()
    model.zero_grad()
    for other in copies(model).values():
        for each in (model, other):
            each.zero_grad()
            torch.manual_seed(1)  # dropout
            each(**inputs()).loss.backward()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6)


def test_a_model_without_adapters_can_be_pickled():
    model = make(vision_adapter=None, text_adapter=None).eval()
    with torch.no_grad():
        expected = model(**batch()).logits
        assert torch.equal(pickle.loads(pickle.dumps(model))(**batch()).logits, expected)


def test_an_adapted_encoder_can_be_pickled_after_its_hidden_states_were_requested():
    encoder = make().vision_model.eval()
    arguments = {"pixel_values": batch()["pixel_values"], "text_states": torch.randn(2, 5, 48)}
    with torch.no_grad():
        expected = encoder(**arguments, output_hidden_states=True).hidden_states
        got = pickle.loads(pickle.dumps(encoder))(**arguments, output_hidden_states=True).hidden_states
    assert len(got) == len(expected) == 4
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
