"""The losses: values, gradients, reductions and dtypes."""

from __future__ import annotations

import pytest
import torch

from detris_peft import DetrisConfig
from detris_peft.modeling.losses import distillation_loss, segmentation_loss


@pytest.fixture
def logits():
    return torch.randn(2, 1, 4, 6)


@pytest.fixture
def labels():
    return torch.rand(2, 12, 24)


def test_loss_equals_equation_7_computed_by_hand(logits, labels):
    """Each logit is compared with the label of its nearest pixel."""
    total = 0.0
    for sample in range(2):
        for row in range(4):
            for column in range(6):
                # Nearest neighbor as in the released code: the pixel at floor(i · scale).
                y, x = labels[sample, row * 3, column * 4].double(), logits[sample, 0, row, column].double()
                total += -(y * torch.log(torch.sigmoid(x)) + (1 - y) * torch.log(1 - torch.sigmoid(x)))
    expected = total / logits.numel()
    torch.testing.assert_close(segmentation_loss(logits, labels).double(), expected, atol=1e-6, rtol=0)


def test_reduction_none_gives_one_mean_per_sample(logits, labels):
    losses = segmentation_loss(logits, labels, reduction="none")
    expected = [segmentation_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(losses, torch.stack(expected))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_is_computed_in_float32_or_higher(logits, labels, dtype, expected, reduction):
    for target in (labels, labels.to(dtype)):
        assert segmentation_loss(logits.to(dtype), target, reduction).dtype == expected


def test_loss_of_float64_logits_has_float64_precision(logits, labels):
    """A change of the logits below the resolution of float32 changes the loss."""
    logits = logits.double()
    assert segmentation_loss(logits + 1e-10, labels) != segmentation_loss(logits, labels)


def test_boolean_labels_equal_float_labels(logits, labels):
    boolean = labels > 0.5
    torch.testing.assert_close(segmentation_loss(logits, boolean), segmentation_loss(logits, boolean.float()))


def _sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def _bce(x, y):
    return -(y * torch.log(_sigmoid(x)) + (1 - y) * torch.log(1 - _sigmoid(x))).mean()


def _dice(x, y):
    p = _sigmoid(x)
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def _focal(x, y):
    p = _sigmoid(x)
    foreground = -0.25 * (1 - p) ** 2 * torch.log(p)
    return torch.where(y > 0, foreground, -0.75 * p**2 * torch.log(1 - p)).mean()


FORMULAS = {"bce": _bce, "dice": _dice, "focal": _focal}


@pytest.mark.parametrize(
    "weights",
    [{"bce": 1.0}, {"dice": 1.0}, {"focal": 2}, {"bce": 1.0, "dice": 0.5, "focal": 0.25}, {"bce": 0, "dice": 3}],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_values_and_gradients_equal_the_formulas(weights, reduction):
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 1, 4, 6, dtype=torch.float64)).requires_grad_()
    labels = (torch.rand(3, 4, 6) > 0.6).double()
    expected = torch.stack(
        [sum(w * FORMULAS[name](logits[i, 0], labels[i]) for name, w in weights.items()) for i in range(3)]
    )
    loss = segmentation_loss(logits, labels, reduction, weights)
    expected = expected.mean() if reduction == "mean" else expected
    torch.testing.assert_close(loss, expected)
    factors = torch.arange(1.0, 1 + loss.numel()).view(loss.shape)
    gradient, expected_gradient = (torch.autograd.grad((factors * x).sum(), logits)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_sample_without_a_target_has_no_dice_loss(logits):
    labels = torch.zeros(2, 4, 6)
    labels[1, 1, 2] = 1
    logits.requires_grad_()
    losses = segmentation_loss(logits, labels, "none", {"dice": 1.0})
    assert losses[0] == 0 < losses[1]
    losses.mean().backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_of_extreme_logits_are_finite(name):
    logits = torch.tensor([-1e4, 1e4, 1e4, -1e4]).view(1, 1, 2, 2).requires_grad_()
    loss = segmentation_loss(logits, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), weights={name: 1.0})
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_target_of_the_distillation_carries_no_gradient():
    logits, clean = (torch.randn(2, 1, 4, 6, requires_grad=True) for _ in range(2))
    loss = distillation_loss(logits, clean)
    loss.backward()
    target, p = clean.detach().sigmoid(), logits.detach().sigmoid()
    torch.testing.assert_close(loss, -(target * p.log() + (1 - target) * (1 - p).log()).mean())
    torch.testing.assert_close(logits.grad, (p - target) / logits.numel())
    assert clean.grad is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"bce": 0.0, "dice": 0}, "expected at least one weight above 0"),
        ({}, "expected at least one weight above 0"),
        ({"bce": -1.0}, "expected finite weights of at least 0"),
        ({"dice": float("nan")}, "expected finite weights of at least 0"),
        ({"iou": 1.0}, "expected some of bce, dice, focal, got 'iou'"),
        ({"bce": "1"}, r"expected dict\[str, float\]"),
        (None, r"expected dict\[str, float\]"),
    ],
)
def test_invalid_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=rf"loss_weights=.*{message}"):
        DetrisConfig(loss_weights=weights)
