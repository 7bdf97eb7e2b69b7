"""Training losses of the mask head.

- Binary cross-entropy: DETRIS (https://arxiv.org/abs/2501.08580), equation 7.
- Dice: V-Net (https://arxiv.org/abs/1606.04797), without the squares in its denominator.
- Focal loss: https://arxiv.org/abs/1708.02002.

Symbols: B batch, H×W pixels of the labels, h×w patch grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

DEFAULT_LOSS_WEIGHTS = {"bce": 1.0}
# Added to both parts of the Dice ratio, in pixels of the logits: the gradient stays bounded for small targets.
_DICE_SMOOTHING = 1.0
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2.0  # as in the paper


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reduction: str = "mean",
    weights: Mapping[str, float] = DEFAULT_LOSS_WEIGHTS,
) -> torch.Tensor:
    """Return the weighted sum of losses of logits (B, 1, 4h, 4w) against labels (B, H, W) in [0, 1].

    The labels are resized by nearest neighbor, as in the released implementation. The losses are computed in float32
    or higher:

    - bce: mean binary cross-entropy over the pixels (equation 7).
    - dice: 1 − (2·Σ p·y + 1) / (Σ p + Σ y + 1) over the pixels, for probabilities p and labels y. It weighs small and
      large targets equally. A sample without a target has no Dice loss: it counts as 0.
    - focal: mean focal loss over the pixels, with α = 0.25 and γ = 2.

    Args:
        reduction: "mean" for a scalar, "none" for one loss per sample, (B,).
        weights: the weights of the losses by name; see `check_loss_weights`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = F.interpolate(labels.unsqueeze(1).to(logits.dtype), size=logits.shape[-2:], mode="nearest")
    if reduction == "mean" and dict(weights) == DEFAULT_LOSS_WEIGHTS:
        # One mean over all pixels: a mean of means is rounded differently, and runs would differ from earlier ones.
        return F.binary_cross_entropy_with_logits(logits, target)
    loss = torch.stack([weight * _LOSSES[name](logits, target) for name, weight in weights.items() if weight]).sum(0)
    return loss.mean() if reduction == "mean" else loss


def distillation_loss(logits: torch.Tensor, clean_logits: torch.Tensor) -> torch.Tensor:
    """Return the mean binary cross-entropy of a masked view against the probabilities of the clean view.

    The target carries no gradient (MaskRIS, https://arxiv.org/abs/2411.19067).

    Args:
        logits: those of the masked view, (B, 1, 4h, 4w).
        clean_logits: those of the clean view, of the same shape.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(dtype), clean_logits.detach().to(dtype).sigmoid())


def check_loss_weights(weights: Mapping[str, float]) -> None:
    """Raise a ValueError unless weights have names of losses and are finite, at least 0 and not all 0."""
    unknown = [name for name in weights if name not in _LOSSES]
    if unknown:
        raise ValueError(
            f"loss_weights={dict(weights)!r:.80}: expected some of {', '.join(_LOSSES)}, got {unknown[0]!r:.40}; "
            "correct it."
        )
    if any(not 0 <= weight < math.inf for weight in weights.values()):
        raise ValueError(f"loss_weights={dict(weights)!r:.80}: expected finite weights of at least 0; correct them.")
    if not sum(weights.values()):
        raise ValueError(
            f"loss_weights={dict(weights)!r:.80}: expected at least one weight above 0; set one, such as bce to 1.0."
        )


def _binary_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def _dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    probabilities, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap, total = 2 * (probabilities * target).sum(1), probabilities.sum(1) + target.sum(1)
    loss = 1 - (overlap + _DICE_SMOOTHING) / (total + _DICE_SMOOTHING)
    return loss * target.any(1)


def _focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    probabilities = logits.sigmoid()
    distance = probabilities * (1 - target) + (1 - probabilities) * target
    alpha = _FOCAL_ALPHA * target + (1 - _FOCAL_ALPHA) * (1 - target)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (alpha * distance**_FOCAL_GAMMA * loss).flatten(1).mean(1)


# Each takes logits and targets (B, 1, 4h, 4w) and returns one loss per sample, (B,).
_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": _binary_cross_entropy,
    "dice": _dice,
    "focal": _focal,
}
