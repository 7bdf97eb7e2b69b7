"""What makes models exportable does not change their outputs."""

from __future__ import annotations

import torch

from detris_peft.export.positions import folded_position_table
from detris_peft.export.program import Sample, largest_difference, trace
from tests.helpers.tiny_models import image_encoder


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
    for module in program.graph_module.modules():
        assert not [node for node in module.graph.nodes if ".py" in str(node.meta)]
