"""Replicas of the complete model in threads, as `nn.DataParallel` uses them on several GPUs."""

from __future__ import annotations

import copy

import pytest
import torch

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.replicas import call_in_threads, replicate
from tests.helpers.tiny_models import IMAGE, image_encoder, inputs, perturb, text_encoder, tiny_config

TEXT = {"siglip": "siglip", "vit": "bert"}  # the others get CLIP


def make(kind: str = "dinov2_with_registers", **changes) -> DetrisForReferringSegmentation:
    torch.manual_seed(0)
    vision, text = image_encoder(kind), text_encoder(TEXT.get(kind, "clip_projected"))
    config = tiny_config(
        vision_config=vision.config, text_config=text.config, dropout=0.0, pad_token_id=None, **changes
    )
    config.vision_adapter.cross_attention_dropout = 0.0
    model = DetrisForReferringSegmentation.from_backbones(vision, text, config)
    perturb(model)
    return model


def halves() -> list[dict[str, torch.Tensor]]:
    """Return two batches with different sentences."""
    batch = inputs(batch=4)
    batch["input_ids"][2:, 1:4] = torch.tensor([7, 11, 13])
    return [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 2), slice(2, 4))]


@pytest.mark.parametrize("kind", IMAGE)
def test_replicas_compute_what_the_model_computes(kind):
    model = make(kind).eval()
    with torch.no_grad():
        for _ in range(2):  # hooks must not accumulate
            replicas = replicate(model, 2)
            got = call_in_threads([lambda r=r, b=b: r(**b).logits for r, b in zip(replicas, halves(), strict=True)])
        expected = [model(**batch).logits for batch in halves()]
    assert not torch.allclose(expected[0], expected[1])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_interpolation", ["backbone", "official"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_replicas_train_as_the_model_does(position_interpolation, checkpointing):
    model = make(position_interpolation=position_interpolation)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    separate = copy.deepcopy(model)
    replicas = replicate(model, 2)
    losses = call_in_threads([lambda r=r, b=b: r(**b).loss for r, b in zip(replicas, halves(), strict=True)])
    torch.stack(losses).sum().backward()

    first, second = halves()
    separate(**first).loss.backward()
    statistics = {name: buffer.clone() for name, buffer in separate.named_buffers()}  # those of the first GPU remain
    separate(**second).loss.backward()
    assert sum(p.grad is not None for p in model.parameters()) > 50
    for (name, a), b in zip(model.named_parameters(), separate.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], msg=name)
