"""Bottleneck adapters and Compacter: equations, selected modules, parameter counts, and errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from detris_peft import BottleneckAdapterConfig, CompacterConfig
from detris_peft.adapters.bottleneck import BottleneckAdapter
from detris_peft.adapters.compacter import Compacter
from detris_peft.adapters.compacter.layer import LowRankPHM
from tests.helpers.adapter_cases import (
    BOTTLENECK,
    BOTTLENECK_CASES,
    AdapterCase,
    assert_differ,
    each_sequential_tuner,
    every_sequential_case,
    randomize,
)

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
TENSOR = torch.zeros(2, 5, 32)


def adapted_modules(model: PeftModel) -> list[str]:
    """Return the names of the modules that have an adapter."""
    return [name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]


def randomized(branch: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.normal_(std=0.3)
    return branch


# Equations


@torch.no_grad()
def test_bottleneck_output_matches_the_equation():
    branch: Any = randomized(BottleneckAdapter(24, BottleneckAdapterConfig(dim=5)))
    x = torch.randn(2, 7, 24)
    hidden = F.gelu(x @ branch.down.weight.T + branch.down.bias)
    torch.testing.assert_close(branch(x), hidden @ branch.up.weight.T + branch.up.bias, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(("phm_dim", "rank"), [(4, 3), (2, 1), (1, 2)])
def test_compacter_output_matches_the_sum_of_kronecker_products(phm_dim: int, rank: int):
    branch: Any = randomized(Compacter(24, CompacterConfig(dim=8, phm_dim=phm_dim, phm_rank=rank)))
    matrices = branch.matrices.weight

    def project(x: torch.Tensor, layer: LowRankPHM) -> torch.Tensor:
        products = [torch.kron(matrices[i], layer.left[i] @ layer.right[i]) for i in range(phm_dim)]
        return x @ torch.stack(products).sum(0) + layer.bias

    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(branch(x), project(F.gelu(project(x, branch.down)), branch.up), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("case", BOTTLENECK_CASES[::5], ids=lambda case: case.name)
def test_adapters_are_applied_to_the_outputs_of_attention_and_mlp(case: AdapterCase):
    """The same as hooks on the plain backbone that add the branches' outputs."""
    model = case.make_model()
    plain = case.make_backbone()
    layers = {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}
    assert len(layers) == 4
    for name, layer in layers.items():
        branch: Any = layer.branches["default"]
        plain.get_submodule(name).register_forward_hook(
            lambda module, args, out, branch=branch: out + 0.2 * branch.up(F.gelu(branch.down(out)))
        )
    torch.testing.assert_close(case.run(model), case.run(plain), **TOLERANCE)


@torch.no_grad()
@each_sequential_tuner
def test_outputs_of_several_adapters_on_one_module_are_summed(case: AdapterCase):
    model = case.make_model("a")
    model.add_adapter("b", case.make_config(scale=0.5))
    randomize(model, "b")
    model.base_model.set_adapter(["a", "b"])
    layer: Any = next(m for m in model.modules() if isinstance(m, BaseTunerLayer))
    x = torch.randn(2, 5, 32)
    out = layer.base_layer(x)
    expected = out + 0.2 * layer.branches["a"](out) + 0.5 * layer.branches["b"](out)
    torch.testing.assert_close(layer(x), expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("silu", F.silu), ("tanh", torch.tanh), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x))],
)
def test_activations(activation: str, function: Any):
    branch: Any = randomized(BottleneckAdapter(8, BottleneckAdapterConfig(dim=4, activation=activation)))
    x = torch.randn(3, 8)
    torch.testing.assert_close(branch(x), branch.up(function(branch.down(x))), **TOLERANCE)


# Initial values


@torch.no_grad()
def test_initial_values_of_the_bottleneck():
    """Truncated normal with a standard deviation of 0.01; the up-projection starts at zero by default."""
    for init_weights in ("identity", "paper"):
        branch = BottleneckAdapter(512, BottleneckAdapterConfig(init_weights=init_weights))
        assert branch.down.weight.std().item() == pytest.approx(0.0088, rel=0.05)  # truncated at two deviations
        assert branch.down.weight.abs().max() <= 0.02
        assert not branch.down.bias.any()
        assert not branch.up.bias.any()
        assert branch.up.weight.any() == (init_weights == "paper")


@torch.no_grad()
def test_initial_values_of_compacter():
    branch = Compacter(768, CompacterConfig())
    assert branch.matrices.weight.std().item() == pytest.approx(1e-4, rel=0.5)
    for factor, fans in ((branch.down.left, 192 + 24), (branch.down.right, 24 + 12), (branch.up.right, 24 + 192)):
        bound = (6 / fans) ** 0.5
        assert bound * 0.98 < factor.abs().max().item() <= bound
    x = torch.randn(2, 5, 768)
    assert 0 < branch(x).abs().max() < 1e-5  # near zero, not zero
    assert not Compacter(768, CompacterConfig(init_weights="identity"))(x).any()


@every_sequential_case
def test_new_adapters_do_not_change_the_output(case: AdapterCase):
    model = get_peft_model(case.make_backbone(), case.make_config()).eval()
    torch.testing.assert_close(case.run(model), case.run(case.make_backbone()), atol=1e-5, rtol=0)


# Every tuner on every backbone


@every_sequential_case
def test_both_tuners_are_saved_loaded_and_unloaded_on_every_backbone(case: AdapterCase, tmp_path: Path):
    model, plain = case.make_model(), case.run(case.make_backbone())
    expected = case.run(model)
    assert_differ(expected, plain)
    blocks = model.get_base_model().get_submodule(case.block_list)
    found = [name for name, module in blocks.named_modules() if isinstance(module, BaseTunerLayer)]
    assert found == [f"{block}.{target}" for block in (0, 2) for target in case.targets]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.make_backbone(), tmp_path, adapter_name="other").eval()
    assert torch.equal(case.run(loaded), expected)
    unloaded = loaded.unload()
    assert set(unloaded.state_dict()) == set(case.make_backbone().state_dict())
    assert torch.equal(case.run(unloaded), plain)


# Selected modules


@each_sequential_tuner
def test_default_modules_are_those_of_all_blocks(case: AdapterCase):
    config = type(case.make_config())
    for fields, targets in (
        ({}, case.targets if config is CompacterConfig else [case.mlp]),
        ({"after_attention": False}, [case.mlp]),
        ({"after_attention": True, "layers_to_transform": 1}, case.targets),
        ({"target_modules": [case.targets[0]]}, case.targets[:1]),
    ):
        model = get_peft_model(case.make_backbone(), config(**fields))
        blocks = [1] if "layers_to_transform" in fields else [0, 1, 2]
        assert adapted_modules(model) == [f"{case.block_list}.{i}.{name}" for i in blocks for name in targets]


@each_sequential_tuner
def test_an_unknown_backbone_works_with_target_modules(case: AdapterCase):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                x = stage(x)
            return x

    config = case.make_config(target_modules=r"stages\.1", layers_to_transform=None, dim=4)
    model = get_peft_model(Backbone(), config)
    assert adapted_modules(model) == ["stages.1"]
    assert model(TENSOR).shape == TENSOR.shape
    with pytest.raises(
        ValueError, match=r"expected a known backbone type \(dinov2.*got 'custom'; set target_modules \(the MLP"
    ):
        get_peft_model(Backbone(), case.make_config())


@each_sequential_tuner
def test_a_wrapped_projection_still_has_its_weight(case: AdapterCase):
    """Some code of transformers and peft reads it."""
    model = case.make_model()
    layer: Any = model.get_base_model().get_submodule(f"{case.block_list}.0.{case.targets[0]}")
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias


# Parameter counts


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (BottleneckAdapterConfig(), 1_982_976),
        (BottleneckAdapterConfig(dim=32, after_attention=True), 1_998_336),
        (CompacterConfig(), 1_618_304),
        (CompacterConfig(dim=112, phm_rank=22), 1_624_448),
    ],
    ids=["adapter", "houlsby", "compacter", "compacter-112"],
)
def test_parameter_counts_of_both_encoders(config: Any, count: int):
    """DINOv2-B with registers and CLIP's text encoder, on the meta device."""
    with torch.device("meta"):
        backbones = [
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(patch_size=14, image_size=518)),
            CLIPTextModel(CLIPTextConfig()),
        ]
        models = [get_peft_model(backbone, copy.deepcopy(config)) for backbone in backbones]
    assert sum(model.get_nb_trainable_parameters()[0] for model in models) == count


# Errors


@pytest.mark.parametrize(
    ("config_cls", "fields", "message"),
    [
        (BottleneckAdapterConfig, {"dim": 0}, "dim=0: expected a size from 1 to 16,384; correct it"),
        (BottleneckAdapterConfig, {"dim": 10**9}, "dim=1000000000: expected a size from 1"),
        (
            BottleneckAdapterConfig,
            {"activation": "gellu"},
            "activation='gellu': expected one of gelu, quick_gelu, relu, silu, tanh; correct it",
        ),
        (BottleneckAdapterConfig, {"activation": ["gelu"]}, r"activation=\['gelu'\]: expected str"),
        (BottleneckAdapterConfig, {"after_attention": 1}, "after_attention=1: expected bool"),
        (
            BottleneckAdapterConfig,
            {"phm_dim": 4},
            "phm_dim: expected a field of BottleneckAdapterConfig, got an unknown",
        ),
        (BottleneckAdapterConfig, {"init_weights": "zeros"}, 'init_weights=\'zeros\': expected "paper" or "identity"'),
        (BottleneckAdapterConfig, {"scale": float("inf")}, "scale=inf: expected a finite number"),
        (
            BottleneckAdapterConfig,
            {"layers_to_transform": [1], "target_modules": ".*mlp"},
            r"layers_to_transform=\[1\] has no effect with the regular expression",
        ),
        (BottleneckAdapterConfig, {"layers_to_transform": []}, r"layers_to_transform=\[\]: expected at least one"),
        (CompacterConfig, {"dim": 50}, "phm_dim=4: expected a divisor of dim=50; change one of them"),
        (CompacterConfig, {"phm_dim": 0}, "phm_dim=0: expected a divisor of dim=48"),
        (CompacterConfig, {"phm_dim": -4}, "phm_dim=-4: expected a divisor of dim=48"),
        (CompacterConfig, {"phm_dim": 4.0}, r"phm_dim=4\.0: expected int"),
        (CompacterConfig, {"phm_rank": 0}, "phm_rank=0: expected a size from 1 to 16,384"),
        (CompacterConfig, {"phm_rank": None}, "phm_rank=None: expected int"),
    ],
)
def test_invalid_config_fields(config_cls: type, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        config_cls(**fields)
    assert "\n" not in str(error.value)


def test_a_width_that_compacter_cannot_divide():
    backbone = BOTTLENECK.make_backbone()
    with pytest.raises(ValueError, match="phm_dim=5: expected a divisor of 32, the width of the encoder; change it"):
        get_peft_model(backbone, CompacterConfig(dim=10, phm_dim=5, phm_rank=2))
    assert not any(isinstance(module, BaseTunerLayer) for module in backbone.modules())
    assert torch.equal(BOTTLENECK.run(backbone), BOTTLENECK.run(BOTTLENECK.make_backbone()))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("attention", r"output is a tensor, got 'encoder\.layer\.0\.attention', .* target .* attention\.o_proj, or"),
        (r".*layer\.0\.attention", r"output is a tensor, got 'encoder\.layer\.0\.attention', which returns a tuple"),
        ("attention.q_proj.weight", "not found|No modules"),
        ("norm1", "expected a module with a linear layer, got a LayerNorm; target the MLP"),
        ("no_such_module", "not found|No modules"),
    ],
)
def test_wrong_target_modules(target: str, message: str):
    targets = target if "*" in target else [target]
    with pytest.raises(ValueError, match=message):
        get_peft_model(BOTTLENECK.make_backbone(), BottleneckAdapterConfig(target_modules=targets))


class Tuples(nn.Module):
    """A module with a linear layer whose output is not its last one's."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide, self.linear = wide, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> Any:
        return torch.cat([x, x], -1) if self.wide else (self.linear(x), None)


@pytest.mark.parametrize(("wide", "got"), [(False, "a tuple"), (True, r"\(2, 5, 64\)")])
def test_modules_of_unknown_backbones_with_another_output(wide: bool, got: str):
    model = get_peft_model(nn.Sequential(Tuples(wide)), BottleneckAdapterConfig(target_modules=["0"]))
    with pytest.raises(
        ValueError,
        match=f"expected modules whose output is a tensor of width 32, got {got} from Tuples; target the MLP",
    ):
        model(TENSOR)
