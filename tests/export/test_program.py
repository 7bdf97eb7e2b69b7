"""What makes models exportable does not change their outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from detris_peft.export.positions import folded_position_table
from detris_peft.export.program import Sample, largest_difference, trace
from detris_peft.modeling.mask_decoder import _convolve_any_batch
from tests.helpers.tiny_models import image_encoder


def test_convolution_with_one_kernel_per_sample():
    x, weight, bias = torch.randn(3, 4, 6, 5), torch.randn(3, 4, 3, 3), torch.randn(3)
    expected = F.conv2d(x.reshape(1, 12, 6, 5), weight, bias, padding=1, groups=3).transpose(0, 1)
    torch.testing.assert_close(_convolve_any_batch(x, weight, bias), expected, rtol=1e-5, atol=1e-5)


def test_folded_position_table_is_interpolated_once():
    encoder, pixels = image_encoder("dinov2"), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = encoder(pixels).last_hidden_state
        with folded_position_table(encoder, lambda: encoder(pixels[:1])):
            encoder.embeddings.position_embeddings.zero_()  # not used any more, except for the class token
            torch.testing.assert_close(encoder(pixels).last_hidden_state, expected)
        assert not torch.equal(encoder(pixels).last_hidden_state, expected), "the encoder is as before"
    assert "interpolate_pos_encoding" not in vars(encoder.embeddings)


def test_encoder_without_position_table_does_not_change():
    encoder = image_encoder("dinov3")
    with folded_position_table(encoder, lambda: (_ for _ in ()).throw(AssertionError("not needed"))):
        pass


def test_largest_difference():
    logits = torch.full((3, 1, 2, 2), 4.0)
    sample = Sample(torch.zeros(3), torch.zeros(3), logits)
    assert largest_difference(lambda *inputs: logits[: len(inputs[0])], sample) == 0
    assert largest_difference(lambda *inputs: logits[: len(inputs[0])] + 0.5, sample) == 0.125
    assert largest_difference(lambda *inputs: logits[: len(inputs[0])] * torch.nan, sample) == float("inf")
    # A program that is only right for batches of three.
    assert largest_difference(lambda *inputs: logits, sample) == float("inf")


def test_program_computes_the_logits_with_a_folded_position_table_and_without_paths(small):
    program, sample = trace(*small, 48)
    assert largest_difference(program.module(), sample) < 1e-5
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "bicubic" in name]
    assert any("bilinear" in name for name in names), "the upsampling of the head stays"
    for module in program.graph_module.modules():
        assert not [node for node in module.graph.nodes if ".py" in str(node.meta)]
