"""The moving average: its decay rises, and a resumed run continues it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detris_peft.training.ema import ExponentialMovingAverage


def average_after(steps, decay, ema=None, model=None):
    """Return an average of weights that jump from 0 to 1 before the first step."""
    model = model or nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        ema = ema or ExponentialMovingAverage(model, decay)
        model.weight.fill_(1)
    for _ in range(steps):
        ema.update()
    return model, ema


def test_after_a_short_run_little_of_the_untrained_weights_is_left():
    """With a constant decay of 0.999, 95 % of them would be left after 50 steps."""
    _, ema = average_after(50, 0.999)
    assert ema.average["weight"].item() > 0.999


def test_the_decay_rises_to_the_given_value():
    model, ema = average_after(1, 0.5)
    assert ema.average["weight"].item() == pytest.approx(1 - 2 / 11)
    for _ in range(100):
        ema.update()
    with torch.no_grad():
        ema.average["weight"].zero_()
        model.weight.fill_(1)
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(0.5)


def test_a_loaded_average_continues_where_it_was_saved(tmp_path):
    _, uninterrupted = average_after(8, 0.999)
    model, stopped = average_after(3, 0.999)
    stopped.save(tmp_path / "ema.safetensors")
    resumed = ExponentialMovingAverage(model, 0.999)
    resumed.load(tmp_path / "ema.safetensors")
    for _ in range(5):
        resumed.update()
    assert torch.equal(resumed.average["weight"], uninterrupted.average["weight"])


def test_an_average_of_an_earlier_version_keeps_its_constant_decay(tmp_path):
    save_file({"weight": torch.zeros(1, 1)}, tmp_path / "ema.safetensors")
    model, _ = average_after(0, 0.9)
    ema = ExponentialMovingAverage(model, 0.9)
    ema.load(tmp_path / "ema.safetensors")
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(0.1)
