"""Parameter counts of every row of the paper's Tables 2 and 3, at full size on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detris_peft import CompacterConfig, DetrisForReferringSegmentation, presets
from detris_peft.modeling.parameter_counts import ParameterCounts, count_parameters, meta_model
from tests.helpers.tiny_models import tiny_config

DINOV2_B, CLIP_TEXT, CLIP_POSITIONS = 86_583_552, 63_428_096, 77 * 512
HEAD = {"neck": 10_114_560, "decoder": 7_899_136, "projector": 4_788_737}
PARTS = ("vision_adapter", "text_adapter", "bridger", "backbones")
ROWS = {
    "table2-full": (0, 0, 0, DINOV2_B + CLIP_TEXT - CLIP_POSITIONS),
    "table2-fixed": (0, 0, 0, 0),
    "table2-adapter": (1_189_632, 793_344, 0, 0),
    "table2-houlsby": (1_198_848, 799_488, 0, 0),
    "table2-compacter": (959_680, 658_624, 0, 0),
    "table2-compacter-112": (950_464, 673_984, 0, 0),
    "table2-lora": (1_179_648, 393_216, 0, 0),
    "table2-etris": (0, 0, 1_387_648, 0),
    "detris-b-half": (1_148_688, 209_160, 0, 0),
    "detris-b": (2_297_376, 418_320, 0, 0),
    "detris-b-plus": (2_297_376, 418_320, 0, 0),
    "table3-none": (0, 0, 0, 0),
    "table3-da": (2_297_376, 0, 0, 0),
    "table3-ta": (0, 418_320, 0, 0),
}
UPDATES = {
    "table2-full": 149_972_224,
    "table2-adapter": 1_982_976,
    "table2-houlsby": 1_998_336,
    "table2-compacter": 1_618_304,
    "table2-compacter-112": 1_624_448,
    "table2-lora": 1_572_864,
    "table2-etris": 1_387_648,
    "detris-b-half": 1_357_848,
    "detris-b": 2_715_696,
    "detris-b-plus": 2_715_696,
}


@pytest.mark.parametrize("preset", ROWS)
def test_every_row_has_exactly_its_parameters(preset):
    counts = count_parameters(meta_model(presets.get(preset)))
    trained = dict(zip(PARTS, ROWS[preset], strict=True))
    assert counts == ParameterCounts(**trained, **HEAD, frozen=DINOV2_B + CLIP_TEXT - trained["backbones"])
    assert counts.backbone_update == UPDATES.get(preset, sum(trained.values()))
    assert counts.head == 22_802_433
    assert counts.trained + counts.frozen == counts.total


@pytest.mark.parametrize("preset", [name for name in ROWS if presets.published(name)])
def test_the_counts_agree_with_the_printed_ones(preset):
    """The paper prints millions with two digits, some rounded and some truncated."""
    printed = presets.published(preset).backbone_update
    assert printed is None or abs(sum(ROWS[preset]) / 1e6 - float(printed)) < 0.01


def test_full_tuning_trains_all_but_the_position_table_of_clip():
    model = meta_model(presets.get("table2-full"))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["text_model.text_model.embeddings.position_embedding.weight"]


def test_a_shared_parameter_is_counted_once():
    """The matrices of Compacter belong to all its layers."""
    adapter = CompacterConfig(dim=16, phm_dim=4, phm_rank=2, after_attention=False)
    counts = count_parameters(meta_model(tiny_config(vision_adapter=adapter, text_adapter=None)))
    per_block = 2 * 2 * (32 + 16) + 16 + 32
    assert counts.vision_adapter == 3 * per_block + 4**3


def test_counts_of_a_loaded_model_are_those_of_the_meta_device():
    config = tiny_config()
    model = DetrisForReferringSegmentation(config)
    counts = count_parameters(model)
    assert counts == count_parameters(meta_model(config))
    assert counts.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.total == sum(p.numel() for p in model.parameters())


def test_a_trained_parameter_outside_the_parts_is_refused():
    model = DetrisForReferringSegmentation(tiny_config())
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra.weight: expected a parameter of the encoders.*freeze or remove it"):
        count_parameters(model)
    model.extra.requires_grad_(False)
    assert count_parameters(model).frozen == count_parameters(DetrisForReferringSegmentation(tiny_config())).frozen + 6


def test_nothing_is_allocated():
    assert {p.device for p in meta_model(tiny_config()).parameters()} == {torch.device("meta")}
