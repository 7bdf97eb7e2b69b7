"""Selection of modules (`target_modules`, `exclude_modules`, `layers_to_transform`) and parameter counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from detris_peft import DenseAlignerConfig, TextAdapterConfig
from tests.helpers.adapter_cases import (
    CASES,
    CLIP_TEXT,
    DINOV2,
    IMAGE_CASES,
    TEXT_CASES,
    AdapterCase,
    assert_differ,
    each_parallel_tuner,
    each_tuner,
    every_parallel_case,
)


def adapted_modules(model: PeftModel) -> list[str]:
    """Return the names of the modules that have an adapter."""
    return [name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]


@dataclass(frozen=True)
class Selection:
    """A way to select blocks. `{mlp}` and `{blocks}` in the fields are replaced by the backbone's names."""

    name: str
    fields: dict[str, Any]
    expected_blocks: list[int]

    def make_config(self, case: AdapterCase) -> Any:
        text = json.dumps(self.fields).replace("{mlp}", case.mlp).replace("{blocks}", case.block_list)
        return case.make_config(**json.loads(text))


SELECTIONS = [
    Selection("list", {"layers_to_transform": [0, 2]}, [0, 2]),
    Selection("index", {"layers_to_transform": 1}, [1]),
    Selection("all", {"layers_to_transform": None}, [0, 1, 2]),
    Selection("names", {"layers_to_transform": [1, 2], "target_modules": ["{mlp}"]}, [1, 2]),
    Selection("full-names", {"layers_to_transform": None, "target_modules": ["{blocks}.1.{mlp}"]}, [1]),
    Selection("regex", {"layers_to_transform": None, "target_modules": r".*\.[01]\.{mlp}"}, [0, 1]),
    Selection("exclude-names", {"layers_to_transform": None, "exclude_modules": ["0.{mlp}"]}, [1, 2]),
    Selection("exclude-regex", {"layers_to_transform": None, "exclude_modules": r".*\.[02]\.{mlp}"}, [1]),
]


@every_parallel_case
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.name)
def test_the_selected_blocks_get_adapters(case: AdapterCase, selection: Selection, tmp_path: Path):
    model = get_peft_model(case.make_backbone(), selection.make_config(case)).eval()
    expected = [f"{case.block_list}.{i}.{case.mlp}" for i in selection.expected_blocks]
    if selection.name == "regex" and case.mlp == "output.dense":
        expected = [name for name in adapted_modules(model) if not name.endswith("attention.output.dense")]
    assert [name for name in adapted_modules(model) if "attention" not in name] == expected
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(case.make_backbone(), tmp_path)
    assert adapted_modules(reloaded) == adapted_modules(model)


@each_parallel_tuner
def test_default_blocks_are_those_of_detris_b(case: AdapterCase):
    """Every second block of twelve."""
    backbone_config = case.backbone_config()
    backbone_config.num_hidden_layers = 12
    config = DenseAlignerConfig(text_dim=24) if case.is_image_encoder else TextAdapterConfig()
    model = get_peft_model(case.model_cls(backbone_config), config)
    assert adapted_modules(model) == [f"{case.block_list}.{i}.mlp" for i in (1, 3, 5, 7, 9, 11)]
    # Full names in target_modules already select the blocks.
    named = type(config)(target_modules=[f"{case.block_list}.0.mlp"])
    assert named.layers_to_transform is None


def test_pooling_head_gets_no_adapter():
    """SigLIP's pooling head also has an `mlp`."""
    siglip = next(case for case in IMAGE_CASES if case.name == "siglip-vision")
    model = get_peft_model(siglip.make_backbone(), siglip.make_config(layers_to_transform=None))
    assert len(adapted_modules(model)) == 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.feed_forward = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.feed_forward(self.norm(x))


class UnknownEncoder(nn.Module):
    """A backbone that is not in `block_layouts`."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_unknown_backbone_works_with_target_modules_and_input_module():
    config = CLIP_TEXT.make_config(layers_to_transform=[1], target_modules=["feed_forward"], input_module="norm")
    backbone, x = UnknownEncoder().eval(), torch.randn(2, 5, 32)
    plain = backbone(x)
    model = get_peft_model(backbone, config).eval()
    assert adapted_modules(model) == ["stages.1.feed_forward"]
    assert_differ(model(x), plain)


@each_tuner
def test_identity_initialization_equals_the_plain_backbone(case: AdapterCase):
    plain = case.run(case.make_backbone())
    model = case.make_model(init_weights="identity")
    torch.testing.assert_close(case.run(model), plain, atol=1e-6, rtol=0)
    model.train()(**case.inputs()).last_hidden_state.sum().backward()
    grads = [p.grad.abs().sum() for name, p in model.named_parameters() if name.endswith(case.up_key)]
    assert len(grads) == 2 * len(case.targets)
    assert all(grad > 0 for grad in grads)  # it can still be trained


@pytest.mark.parametrize(
    ("backbone", "config", "count"),
    [
        ("dinov2-b", DenseAlignerConfig(), 2_297_376),
        ("dinov2-b", DenseAlignerConfig(layers_to_transform=[1, 5, 9]), 1_148_688),
        ("dinov2-l", DenseAlignerConfig(layers_to_transform=[2, 6, 10, 14, 18, 22]), 2_692_128),
        ("dinov2-l", DenseAlignerConfig(dim=384, layers_to_transform=list(range(1, 24))), 27_638_640),
        ("clip-b", TextAdapterConfig(), 418_320),
        ("clip-b", TextAdapterConfig(layers_to_transform=[1, 5, 9]), 209_160),
        ("clip-b", TextAdapterConfig(dim=384, layers_to_transform=list(range(1, 12))), 5_692_720),
    ],
    ids=["B", "B-half", "L", "L-mixed", "text-B", "text-B-half", "text-L-mixed"],
)
def test_parameter_counts_match_the_published_models(backbone: str, config: Any, count: int):
    """Full-size models on the meta device: no memory is allocated."""
    with torch.device("meta"):
        model = {
            "dinov2-b": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(patch_size=14, image_size=518)),
            "dinov2-l": lambda: Dinov2Model(
                Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
            ),
            "clip-b": lambda: CLIPTextModel(CLIPTextConfig()),
        }[backbone]()
        peft_model = get_peft_model(model, config)
    assert peft_model.get_nb_trainable_parameters()[0] == count


def test_every_known_backbone_has_a_case():
    from detris_peft.adapters.block_layouts import IMAGE_BLOCKS, TEXT_BLOCKS

    assert {case.backbone_config().model_type for case in IMAGE_CASES} == set(IMAGE_BLOCKS)
    assert {case.backbone_config().model_type for case in TEXT_CASES} == set(TEXT_BLOCKS)
    assert len(CASES) == len({case.name for case in CASES})
    assert DINOV2 in CASES
