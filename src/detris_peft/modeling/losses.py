"""Training losses of the mask head: DETRIS (https://arxiv.org/abs/2501.08580), equation 7."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the mean binary cross-entropy (equation 7) of logits (B, 1, 4h, 4w) against labels (B, H, W) in [0, 1].

    The labels are resized by nearest neighbor, as in the released implementation. The loss is computed in float32 or
    higher.

    Args:
        reduction: "mean" for a scalar, "none" for one mean per sample, (B,).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = F.interpolate(labels.unsqueeze(1).to(logits.dtype), size=logits.shape[-2:], mode="nearest")
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    return loss.flatten(1).mean(1) if reduction == "none" else loss
