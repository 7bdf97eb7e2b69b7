"""The Bridger's configuration: fields, other depths, and what it cannot be combined with."""

from __future__ import annotations

import json
import math

import pytest
from transformers import BertConfig, CLIPTextConfig, Dinov2Config, SwinConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, TextAdapterConfig
from detris_peft.modeling.bridger_config import BridgerConfig
from tests.helpers.tiny_models import tiny_config

WRONG = [
    ({"dim": 12}, "bridger.dim=12: expected a multiple of num_heads=8"),
    ({"dim": 0}, "bridger.dim=0: expected a size from 1"),
    ({"dim": 10**7}, "bridger.dim=10000000: expected a size from 1 to 16,384"),
    ({"dim": math.nan}, "bridger.dim=nan: expected int"),
    ({"dim": True}, "bridger.dim=True: expected int"),
    ({"dim": "128"}, "bridger.dim='128': expected int"),
    ({"dim": None}, "bridger.dim=None: expected int"),
    ({"num_heads": 0}, "bridger.num_heads=0: expected a size from 1"),
    ({"num_heads": -8}, "bridger.num_heads=-8: expected a size from 1"),
    ({"vision_after_blocks": []}, r"bridger.vision_after_blocks=\[\]: expected at least one block"),
    ({"vision_after_blocks": [3, 3, 11]}, r"vision_after_blocks=\[3, 3, 11\]: .* in increasing order"),
    ({"text_after_blocks": [11, 7, 3]}, r"text_after_blocks=\[11, 7, 3\]: .* in increasing order"),
    ({"text_after_blocks": [-1, 3, 7]}, r"text_after_blocks=\[-1, 3, 7\]: .* counted from 0"),
    ({"text_after_blocks": [3, 7]}, "text_after_blocks.*as many blocks as in vision_after_blocks.*got 2 and 3"),
    ({"text_after_blocks": [3.0, 7, 11]}, r"text_after_blocks=\[3.0, 7, 11\]: expected list\[int\]"),
    ({"text_after_blocks": [[3], 7, 11]}, r"expected list\[int\]"),
    ({"text_after_blocks": [True, 7, 11]}, r"expected list\[int\]"),
    ({"text_after_blocks": "3,7,11"}, "text_after_blocks='3,7,11': expected list"),
    ({"text_after_blocks": None}, "text_after_blocks=None: expected list"),
    ({"text_after_blocks": {3, 7, 11}}, "expected list"),
    ({"vision_after_blocks": [*range(10_000)]}, "got 3 and 10000"),
    ({"num_head": 4}, "bridger.num_head: expected a field of BridgerConfig.*use num_heads"),
    ({1: 4}, "bridger.1: expected a field of BridgerConfig.*remove it"),
    ([3, 7, 11], r"bridger: expected a BridgerConfig, a dict of its fields or None, got \[3, 7, 11\]"),
    (True, "bridger: expected a BridgerConfig, a dict of its fields or None, got True"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_fields_are_errors_of_one_line(value, message):
    with pytest.raises(ValueError, match=message) as raised:
        DetrisConfig(vision_adapter=None, bridger=value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_sequences_become_lists():
    config = BridgerConfig(vision_after_blocks=(3, 7), text_after_blocks=range(2))
    assert (config.vision_after_blocks, config.text_after_blocks) == ([3, 7], [0, 1])


def test_round_trip(tmp_path):
    config = BridgerConfig(64, [2, 5], [3, 4], 4)
    assert BridgerConfig.from_value(json.loads(json.dumps(config.to_dict()))) == config
    assert BridgerConfig.from_value(None) is None
    model_config = DetrisConfig(vision_adapter=None, bridger=config)
    model_config.save_pretrained(tmp_path)
    assert DetrisConfig.from_pretrained(tmp_path).bridger == config
    assert DetrisConfig(vision_adapter=None, bridger=config.to_dict()).bridger == config
    assert DetrisConfig().bridger is None


def test_a_changed_field_is_checked():
    config = BridgerConfig()
    config.dim = 9
    with pytest.raises(ValueError, match=r"bridger.dim=9: expected a multiple"):
        DetrisConfig(vision_adapter=None, bridger=config)
    model_config = tiny_config(vision_adapter=None, bridger={"vision_after_blocks": [0], "text_after_blocks": [0]})
    model_config.bridger.text_after_blocks = [3]
    with pytest.raises(ValueError, match=r"bridger.text_after_blocks=\[3\]: .* of the text encoder, 0 to 2"):
        model_config.validate_architecture()


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ((12, 12), ([3, 7, 11], [3, 7, 11])),
        ((12, 6), ([3, 7, 11], [1, 3, 5])),  # ViT-S and MiniLM
        ((24, 12), ([7, 15, 23], [3, 7, 11])),
        ((2, 12), ([0, 1], [7, 11])),  # of stages after the same block, the last remains
        ((1, 1), ([0], [0])),
    ],
)
def test_scaled_to(depths, expected):
    scaled = BridgerConfig(dim=64).scaled_to(depths[0], 12, depths[1], 12)
    assert (scaled.vision_after_blocks, scaled.text_after_blocks) == expected
    assert scaled.dim == 64
    vision, text = Dinov2Config(num_hidden_layers=depths[0]), BertConfig(num_hidden_layers=depths[1])
    config = DetrisConfig(vision_adapter=None, bridger={}, max_text_length=17).scaled_to(vision, text)
    assert (config.bridger.vision_after_blocks, config.bridger.text_after_blocks) == expected


def test_blocks_beyond_an_encoder():
    with pytest.raises(ValueError, match=r"bridger.vision_after_blocks=\[3, 7, 12\]: .* image encoder, 0 to 11"):
        DetrisConfig(vision_adapter=None, bridger={"vision_after_blocks": [3, 7, 12]})
    with pytest.raises(ValueError, match=r"bridger.text_after_blocks=\[3, 7, 11\]: .* text encoder, 0 to 5"):
        DetrisConfig(vision_adapter=None, bridger={}, text_config={"model_type": "bert", "num_hidden_layers": 6})


def test_unlisted_encoders():
    with pytest.raises(ValueError, match=r"bridger: expected an encoder whose blocks it can run .*got 'swin'"):
        BridgerConfig().check(SwinConfig(), CLIPTextConfig())
    with pytest.raises(ValueError, match=r"bridger: expected an encoder whose blocks it can run .*got 'gpt2'"):
        DetrisConfig(vision_adapter=None, text_adapter=None, bridger={}, text_config={"model_type": "gpt2"})


def test_an_adapter_that_needs_the_last_text_states():
    with pytest.raises(ValueError, match=r"bridger: expected an image adapter .* got a DenseAlignerConfig"):
        DetrisConfig(bridger={})
    with pytest.raises(ValueError, match="bridger: expected an image adapter"):
        DetrisConfig(vision_adapter=DenseAlignerConfig(), bridger=BridgerConfig())
    assert DetrisConfig(vision_adapter=None, text_adapter=TextAdapterConfig(), bridger={}).bridger == BridgerConfig()
