"""Parameter groups and their learning rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detris_peft import DetrisForReferringSegmentation
from detris_peft.training import TrainingArguments
from detris_peft.training.optimizer import create_optimizer
from detris_peft.training.schedule import scheduled_rate
from detris_peft.training.step import TrainingStep
from tests.helpers.tiny_models import tiny_config

HEAD = ("neck", "decoder", "projector")


@pytest.mark.parametrize("frozen", ["nothing", "head", "adapters"])
def test_each_group_has_its_own_rate_also_if_the_other_one_is_empty(frozen):
    model = DetrisForReferringSegmentation(tiny_config())
    encoders = model.vision_model, model.text_model
    for module in {"nothing": (), "head": [getattr(model, name) for name in HEAD], "adapters": encoders}[frozen]:
        module.requires_grad_(False)
    arguments = TrainingArguments(learning_rate=1e-2, backbone_learning_rate=1e-3, warmup_steps=1, milestones=[1])
    optimizer = create_optimizer(model, arguments.learning_rate, arguments.backbone_learning_rate)
    step = TrainingStep(arguments, None, model, optimizer, None, None, None)
    expected = {"nothing": [1e-2, 1e-3], "head": [1e-3], "adapters": [1e-2]}[frozen]
    assert step.base_rates == [group["lr"] for group in optimizer.param_groups] == expected
    in_encoders = {id(p) for encoder in encoders for p in encoder.parameters()}
    for group in optimizer.param_groups:
        assert {id(p) in in_encoders for p in group["params"]} == {group["lr"] == 1e-3}


def test_warm_up_and_decay_are_relative_to_the_base_rate():
    arguments = TrainingArguments(learning_rate=1e-2, warmup_steps=3, milestones=[2, 1], gamma=0.5)
    rates = [scheduled_rate(8.0, arguments, *position) for position in ((1, 1), (1, 4), (1, 9), (2, 9), (3, 9))]
    assert rates == [2.0, 8.0, 8.0, 4.0, 2.0]


def test_a_model_without_trained_parameters_is_refused():
    model = DetrisForReferringSegmentation(tiny_config()).requires_grad_(False)
    with pytest.raises(ValueError, match="expected parameters that require a gradient, got none; call requires_grad_"):
        create_optimizer(model, 1e-3)


def test_the_fused_optimizer_goes_on_from_a_checkpoint_of_the_plain_one():
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = create_optimizer(model, 1e-2)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        resumed = create_optimizer(model, 1e-2, fused=fused)
        assert bool(resumed.defaults["fused"]) is fused
        resumed.load_state_dict(optimizer.state_dict())
        resumed.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights)
