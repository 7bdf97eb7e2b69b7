"""Every number of the paper's tables that follows from the architecture, at full size on the meta device."""

from __future__ import annotations

import pytest
import torch

from detris_peft import DetrisForReferringSegmentation, presets


@pytest.fixture(scope="module")
def published():
    """Builds a preset without allocating a weight, once."""
    built = {}

    def build(name):
        if name not in built:
            with torch.device("meta"):
                built[name] = DetrisForReferringSegmentation(presets.get(name))
        return built[name]

    return build


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def frozen(module):
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
def test_adapters(published, preset, dense_aligners, text_adapters, share):
    """Tables 2 and 4: adapter parameters, and their share of the backbones."""
    model = published(preset)
    assert (trained(model.vision_model), trained(model.text_model)) == (dense_aligners, text_adapters)
    backbones = frozen(model.vision_model) + frozen(model.text_model)
    digits = len(share.partition(".")[2]) - 1
    assert f"{100 * (dense_aligners + text_adapters) / backbones:.{digits}f}%" == share


@pytest.mark.parametrize("preset", ["detris-b", "detris-b-half", "detris-l", "detris-l-mixed"])
def test_head(published, preset):
    model = published(preset)
    neck = 10_114_560 if "-b" in preset else 10_507_776
    assert [trained(part) for part in (model.neck, model.decoder, model.projector)] == [neck, 7_899_136, 4_788_737]
    assert not [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("base")]


@pytest.mark.parametrize(("preset", "millions"), [("detris-b", "86.58"), ("detris-l", "304.37")])
def test_frozen_backbones(published, preset, millions):
    model = published(preset)
    assert f"{frozen(model.vision_model) / 1e6:.2f}" == millions
    assert f"{frozen(model.text_model) / 1e6:.2f}" == "63.43"


def test_full_tuning(published):
    """Table 2's 149.97 M: both backbones, without CLIP's position table."""
    model = published("detris-b")
    table = model.text_model.get_input_embeddings()
    position_table = next(p for n, p in model.text_model.named_parameters() if "position_embedding" in n)
    assert table.weight.shape[1] == position_table.shape[1]
    total = frozen(model.vision_model) + frozen(model.text_model) - position_table.numel()
    assert f"{total / 1e6:.2f}" == "149.97"


def test_checkpoint_of_b_holds_25_5_million():
    """What is trained, adapters and head together: 102 MB in float32."""
    with torch.device("meta"):
        model = DetrisForReferringSegmentation(presets.get("detris-b"))
    assert f"{trained(model) / 1e6:.1f}" == "25.5"
