"""The projector equals upsampling, convolving and convolving with the sentence's kernel, one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from detris_peft.modeling.mask_decoder import Projector, UpsampledConv2d, _interpolation

SIZES = [(8, 8), (7, 5), (1, 1), (1, 6), (2, 3)]


def upsample(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def plain_projector(projector: Projector, features: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
    """Compute the logits in the order of the paper, with the modules' weights."""
    for block in (projector.upsample1, projector.upsample2):
        features = block[2](block[1](F.conv2d(upsample(features), block[0].weight, padding=1)))
    x = F.conv2d(features, projector.pixel_proj.weight, projector.pixel_proj.bias)
    kernel = projector.sentence_proj(sentence)
    batch, channels, height, width = x.shape
    weight, bias = kernel[:, :-1].reshape(batch, channels, 3, 3), kernel[:, -1]
    logits = F.conv2d(x.reshape(1, batch * channels, height, width), weight, bias, padding=1, groups=batch)
    return logits.transpose(0, 1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_upsampled_convolution(height, width):
    convolution = UpsampledConv2d(6, 4).double()
    x = torch.randn(3, 6, height, width, dtype=torch.float64, requires_grad=True)
    got = convolution(x)
    expected = F.conv2d(upsample(x), convolution.weight, padding=1)
    torch.testing.assert_close(got, expected)
    gradient = torch.randn_like(expected)
    leaves = (x, convolution.weight)
    for a, b in zip(
        torch.autograd.grad(got, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_projector(height, width, training):
    torch.manual_seed(0)
    projector = Projector(32, 12)
    torch.nn.init.normal_(projector.pixel_proj.bias)  # seen through the zero padding, it is smaller at the border
    plain = copy.deepcopy(projector)
    features, sentence = torch.randn(2, 32, height, width), torch.randn(2, 12)
    got = projector.train(training)(features, sentence)
    expected = plain_projector(plain.train(training), features, sentence)
    assert got.shape == (2, 1, 4 * height, 4 * width)
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
    for a, b in zip(projector.buffers(), plain.buffers(), strict=True):  # running statistics
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    got.square().mean().backward()
    expected.square().mean().backward()
    for (name, a), b in zip(projector.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpolation_is_exact_in_lower_precision(dtype):
    exact = _interpolation(9, torch.zeros(1))
    assert torch.equal(_interpolation(9, torch.zeros(1, dtype=dtype)).float(), exact)
    assert set(exact.unique().tolist()) == {0.0, 0.25, 0.75, 1.0}
