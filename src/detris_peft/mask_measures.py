"""Score and box of a predicted mask; shared by the image processor and the predictor."""

from __future__ import annotations

import cv2
import numpy as np


def mask_score(probabilities: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean probability inside a mask, in [0, 1]; 0.0 for an empty mask.

    Args:
        probabilities: (H, W) floats; bicubic interpolation may exceed [0, 1], and is clipped.
        mask: (H, W) bool.
    """
    inside = probabilities[mask]
    return float(inside.clip(0, 1).mean(dtype=np.float64)) if inside.size else 0.0


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the smallest box around the foreground of a mask (H, W), or None for an empty mask.

    The box is (x1, y1, x2, y2) in pixels, x to the right and y down. x2 and y2 are exclusive, so that
    x2 - x1 is the width, as in COCO.
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return (x, y, x + width, y + height) if width and height else None
