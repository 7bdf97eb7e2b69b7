"""Parity with values recorded from the authors' implementation (fixtures/README.md): stages, gradients, training."""

from __future__ import annotations

import json

import pytest
import torch

from detris_peft.conversion import load_official_checkpoint
from detris_peft.conversion.key_mapping import official_layout
from detris_peft.training.optimizer import create_optimizer
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


@pytest.fixture
def model():
    return load_official_checkpoint(CHECKPOINT, reference_config())


def test_outputs_of_every_stage_in_eval_mode(model, reference):
    """In float32, within 1e-4."""
    expected, got = reference("tiny_eval"), {}
    model.neck.register_forward_hook(lambda *call: got.__setitem__("neck", call[-1]))
    model.decoder.register_forward_hook(lambda *call: got.__setitem__("decoder", call[-1].flatten(2)))
    with torch.no_grad():
        out = model(expected["pixel_values"], expected["input_ids"])
    got |= {"text_last_hidden_state": out.text_states, "sentence_embedding": out.sentence_state, "logits": out.logits}
    got |= {f"visual_{i + 1}": feature_map for i, feature_map in enumerate(out.vision_features)}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_one_training_step(model, reference):
    """Loss, the gradient of every trainable weight and every running statistic, within 1e-4 of the tensor's scale."""
    inputs, expected = reference("tiny_eval"), reference("tiny_train")
    model.train()
    out = model(inputs["pixel_values"], inputs["input_ids"], labels=inputs["mask"][:, 0])
    out.loss.backward()

    torch.testing.assert_close(out.loss, expected["loss"].squeeze(), rtol=1e-4, atol=0)
    torch.testing.assert_close(out.logits, expected["logits"], rtol=1e-4, atol=1e-3)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    rows = {row.official: row for row in official_layout(model.config)}
    trained = {name for name, p in parameters.items() if p.requires_grad}
    for key, value in expected.items():
        kind, _, official = key.partition(".")
        if kind not in ("grad", "buffer"):
            continue
        row = rows[official]
        (ours,) = row.ours
        got = parameters[ours].grad if kind == "grad" else buffers[ours]
        got = got.transpose(0, 1) if row.transposed else got
        # The minimum is for gradients that are zero up to rounding errors (of a bias before BatchNorm).
        scale = value.abs().max().clamp_min(1e-2)
        assert (got - value).abs().max() <= 1e-4 * scale, key
        trained.discard(ours)
    assert not trained, f"no reference gradient was compared with {sorted(trained)[:3]}"


@pytest.mark.parametrize("threads", [1, 2])
def test_trajectory(model, reference, threads):
    """Twelve steps of Adam in float64, where the result does not depend on the machine or the number of threads.

    The authors' run was recorded in float32. It leaves exact arithmetic early: one weight of the projector has a
    gradient of 2e-8 in the first step, which float32 rounds to -1e-7, and Adam takes a full step in either direction.
    The difference grows tenfold per step, so the first five losses are compared with the authors' run. All twelve,
    and the final logits, are compared with a float64 run of the version that reproduced the authors' float32 run.
    """
    run, exact = reference("tiny_trajectory"), reference("tiny_trajectory_float64")
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    losses = []
    try:
        model.double().train()
        optimizer = create_optimizer(model, learning_rate=1e-3)
        for pixel_values, input_ids, masks in zip(run["pixel_values"], run["input_ids"], run["masks"], strict=True):
            loss = model(pixel_values.double(), input_ids, labels=masks.flatten(0, -3)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            logits = model(run["pixel_values"][0].double(), run["input_ids"][0]).logits
    finally:
        torch.set_num_threads(previous)
    torch.testing.assert_close(torch.stack(losses[:5]), run["losses"][:5].double().flatten(), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.stack(losses), exact["losses"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits, exact["final_logits"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("preset", "keys"),
    [("detris-b", "keys_base"), ("detris-l", "keys_large"), ("detris-l-mixed", "keys_large_mixed")],
)
def test_layout_contains_every_released_key(preset, keys):
    """All keys and shapes of the three released architectures, without allocating weights."""
    from detris_peft import DetrisForReferringSegmentation, presets

    config = presets.get(preset)
    released = json.loads((FIXTURES / f"{keys}.json").read_text())
    with torch.device("meta"):
        state = DetrisForReferringSegmentation(config).state_dict()
    rows = list(official_layout(config))
    assert {row.official for row in rows} == set(released)
    used = [name for row in rows for name in row.ours]
    assert len(used) == len(set(used))
    # Position ids are not weights: the backbone creates them.
    assert set(state) - set(used) == {name for name in state if name.endswith("position_ids")}
    for row in rows:
        for name, value in row.split(torch.empty(released[row.official], device="meta")).items():
            assert value.shape == state[name].shape, row.official
