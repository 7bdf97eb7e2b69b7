"""The segmentation loss: values, reductions and dtypes."""

from __future__ import annotations

import pytest
import torch

from detris_peft.modeling.losses import segmentation_loss


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
