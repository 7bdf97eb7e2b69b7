"""Parameter counts of the paper's tables, at full size on the meta device."""

from __future__ import annotations

import pytest
import torch

from detris_peft import DetrisForReferringSegmentation, presets


@pytest.fixture(scope="module")
def published():
    """A function that builds the model of a preset without allocating weights, once per preset."""
    built = {}

    def build(name):
        if name not in built:
            with torch.device("meta"):
                built[name] = DetrisForReferringSegmentation(presets.get(name))
        return built[name]

    return build


def count_trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_frozen(module):
    return sum(p.numel() for p in module.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("preset", "dense_aligners", "text_adapters", "share"),
    [
        ("detris-b", 2_297_376, 418_320, "1.8%"),
        ("detris-b-half", 1_148_688, 209_160, "0.9%"),
        ("detris-l", 2_692_128, 418_320, "0.85%"),
        ("detris-l-mixed", 27_638_640, 5_692_720, "9.1%"),
    ],
)
def test_parameters_of_adapters(published, preset, dense_aligners, text_adapters, share):
    """Tables 2 and 4: adapter parameters, and their share of the backbones."""
    model = published(preset)
    assert (count_trained(model.vision_model), count_trained(model.text_model)) == (dense_aligners, text_adapters)
    backbones = count_frozen(model.vision_model) + count_frozen(model.text_model)
    digits = len(share.partition(".")[2]) - 1
    assert f"{100 * (dense_aligners + text_adapters) / backbones:.{digits}f}%" == share


@pytest.mark.parametrize("preset", ["detris-b", "detris-b-half", "detris-l", "detris-l-mixed"])
def test_parameters_of_head(published, preset):
    model = published(preset)
    neck = 10_114_560 if "-b" in preset else 10_507_776
    counts = [count_trained(part) for part in (model.neck, model.decoder, model.projector)]
    assert counts == [neck, 7_899_136, 4_788_737]
    assert not [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("base")]


@pytest.mark.parametrize(("preset", "millions"), [("detris-b", "86.58"), ("detris-l", "304.37")])
def test_parameters_of_frozen_backbones(published, preset, millions):
    model = published(preset)
    assert f"{count_frozen(model.vision_model) / 1e6:.2f}" == millions
    assert f"{count_frozen(model.text_model) / 1e6:.2f}" == "63.43"


def test_parameters_of_full_tuning(published):
    """The 149.97 M of Table 2: both backbones, without CLIP's position embeddings."""
    model = published("detris-b")
    token_embeddings = model.text_model.get_input_embeddings()
    position_embeddings = next(p for n, p in model.text_model.named_parameters() if "position_embedding" in n)
    assert token_embeddings.weight.shape[1] == position_embeddings.shape[1]
    total = count_frozen(model.vision_model) + count_frozen(model.text_model) - position_embeddings.numel()
    assert f"{total / 1e6:.2f}" == "149.97"


def test_checkpoint_of_detris_b_contains_25_5_million_parameters():
    """Adapters and head, 102 MB in float32."""
    with torch.device("meta"):
        model = DetrisForReferringSegmentation(presets.get("detris-b"))
    assert f"{count_trained(model) / 1e6:.1f}" == "25.5"
