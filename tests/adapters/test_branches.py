"""Outputs of the branches, compared with a step-by-step implementation of the paper's equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detris_peft import DenseAlignerConfig, TextAdapterConfig
from detris_peft.adapters.dense_aligner import DenseAligner
from detris_peft.adapters.dmoc import DenseMixtureOfConvolutions
from detris_peft.adapters.text_adapter import TextAdapter
from tests.helpers.adapter_cases import CLIP_TEXT, DINOV2, TEXT_DIM, randomize

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def conv_block(block: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Compute convolution → BatchNorm (eps 1e-3) → ReLU with the running statistics."""
    conv, norm = block[0], block[1]
    conv_nd = F.conv2d if x.ndim == 4 else F.conv1d
    x = conv_nd(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-3).sqrt()
    return (x * norm.weight.view(shape) + norm.bias.view(shape)).clamp_min(0)


def mixture_with_residual(dmoc: DenseMixtureOfConvolutions, z: torch.Tensor) -> torch.Tensor:
    """Compute D-MoC and its residual connection (equations 1 and 2)."""
    b1 = conv_block(dmoc.branch1, z)
    b2 = conv_block(dmoc.branch3[1], conv_block(dmoc.branch3[0], torch.cat([z, b1], 1)))
    b3 = conv_block(dmoc.branch5[1], conv_block(dmoc.branch5[0], torch.cat([z, b1, b2], 1)))
    return torch.cat([b1, b2, b3], 1) + z


def with_random_statistics(module: nn.Module) -> nn.Module:
    """Replace the initial BatchNorm statistics by random ones; return the module in eval mode."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("dim", [16, 64])
def test_widths_and_kernels_of_the_convolutions(dim: int):
    dmoc = DenseMixtureOfConvolutions(dim, spatial_dims=2)
    convolutions = [m for m in dmoc.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions] == [
        (dim, dim // 2, 1),
        (dim * 3 // 2, dim // 16, 1),
        (dim // 16, dim // 4, 3),
        (dim * 7 // 4, dim // 16, 1),
        (dim // 16, dim // 4, 5),
    ]


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_dense_aligner_output_matches_the_equations(prefix: int):
    config = DenseAlignerConfig(dim=32, text_dim=20, cross_attention_dim=16, cross_attention_heads=2)
    branch = with_random_statistics(DenseAligner(24, config))
    (h, w), tokens, text = (3, 4), torch.randn(2, prefix + 12, 24), torch.randn(2, 5, 20)
    z = branch.down(tokens).relu()
    dense = (
        mixture_with_residual(branch.dmoc, z[:, prefix:].transpose(1, 2).reshape(2, 32, h, w))
        .flatten(2)
        .transpose(1, 2)
    )
    cross = branch.cross
    query, key = cross.query(dense), cross.key_value(text)
    w_q, w_k, w_v = cross.attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = cross.attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (2, 8)).transpose(1, 2)
        for x, weight, bias in ((query, w_q, b_q), (key, w_k, b_k), (key, w_v, b_v))
    )
    attended = ((q @ k.transpose(-1, -2)) / 8**0.5).softmax(-1) @ v
    aligned = cross.output(cross.attention.out_proj(attended.transpose(1, 2).flatten(2)))
    # Prefix tokens skip both modules, but both residual connections apply: 2z.
    expected = branch.up(torch.cat([2 * z[:, :prefix], aligned + z[:, prefix:]], 1))
    torch.testing.assert_close(branch(tokens, text, (h, w)), expected, **TOLERANCE)


@torch.no_grad()
def test_text_adapter_output_matches_the_equation():
    branch = with_random_statistics(TextAdapter(24, TextAdapterConfig(dim=32)))
    residual = torch.randn(2, 7, 24)
    z = branch.down(residual).relu()
    words = mixture_with_residual(branch.dmoc, z[:, 1:].transpose(1, 2)).transpose(1, 2)
    expected = branch.up(torch.cat([2 * z[:, :1], words], 1))
    torch.testing.assert_close(branch(residual), expected, **TOLERANCE)


def test_initialization():
    """Dense Aligner: Kaiming normal (fan-in, ReLU), except the attention's in-projection. Text adapter: PyTorch's."""
    branch = DenseAligner(512, DenseAlignerConfig(text_dim=512))
    for layer, fan_in in ((branch.down, 512), (branch.up, 128), (branch.cross.key_value, 512)):
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not layer.bias.any()
    bound = (6 / (128 + 3 * 128)) ** 0.5  # Xavier uniform
    assert bound * 0.98 < branch.cross.attention.in_proj_weight.abs().max().item() <= bound
    text = TextAdapter(512, TextAdapterConfig())
    assert text.down.weight.abs().max().item() <= (1 / 512) ** 0.5
    assert text.down.bias.any()


@pytest.mark.parametrize("training", [False, True])
def test_a_sentence_of_one_token(training):
    """The text adapter's convolutions then get no token; the Dense Aligner attends to one."""
    text, image = CLIP_TEXT.make_model().train(training), DINOV2.make_model().train(training)
    states = text(input_ids=torch.tensor([[7], [8], [9]])).last_hidden_state
    assert states.shape == (3, 1, 32)
    alone = text(input_ids=torch.tensor([[7, 0], [8, 0], [9, 0]])).last_hidden_state[:, :1]
    torch.testing.assert_close(states, alone)  # attention is causal, and the start token skips the convolutions
    pixels = DINOV2.inputs()["pixel_values"]
    features = image(pixel_values=pixels, text_states=torch.randn(3, 1, TEXT_DIM)).last_hidden_state
    assert torch.isfinite(features).all()
    (features.sum() + states.sum()).backward()


@pytest.mark.parametrize(
    "case",
    [pytest.param(DINOV2, id="dense-aligner", marks=pytest.mark.slow), pytest.param(CLIP_TEXT, id="text-adapter")],
)
def test_a_mixed_batch_after_compilation(case):
    model = case.make_model()
    model.add_adapter("other", case.make_config(layers_to_transform=[1]))
    randomize(model, "other")
    model.eval()
    mixed = ["other", "__base__", "default"]
    expected = {None: case.run(model), "mixed": case.run(model, adapter_names=mixed)}
    model.get_base_model().get_submodule(case.block_list)[2].compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(case.run(model), expected[None])
        torch.testing.assert_close(case.run(model, adapter_names=mixed), expected["mixed"])
