"""Conversion of 8-bit pixels to floats by tables of the 256 possible values: exact on every device, and fast."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

# Labels of masks that were warped in 8 bits.
LABEL_LEVELS = np.arange(256, dtype=np.float32)[None] / np.float32(255)


def normalized_levels(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return the normalized value of each of the 256 levels per channel, float32 (C,256)."""
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)
    return (LABEL_LEVELS - means[:, None]) / stds[:, None]


def look_up(pixels: Any, levels: np.ndarray) -> Any:
    """Convert uint8 (B,H,W,C) by a table float32 (C,256) to float32 (B,C,H,W): an array, or a tensor on its device."""
    if isinstance(pixels, torch.Tensor):
        on_cpu = pixels.device.type == "cpu"
        return torch.from_numpy(look_up(pixels.numpy(), levels)) if on_cpu else look_up_on_device(pixels, levels)
    batch, height, width, channels = pixels.shape
    converted = np.empty((batch, channels, height, width), np.float32)
    for image, planes in zip(pixels, converted, strict=True):
        for plane, level, out in zip(cv2.split(image), levels, planes, strict=True):
            cv2.LUT(plane, level, dst=out)
    return converted


def look_up_on_device(pixels: torch.Tensor, levels: np.ndarray) -> torch.Tensor:
    """Convert a tensor as `look_up` does, on any device.

    Arithmetic would not do: a GPU may multiply by the reciprocal instead of dividing.
    """
    table = torch.from_numpy(levels).to(pixels.device, non_blocking=True).flatten()
    first = torch.arange(0, levels.size, 256, dtype=torch.int32, device=pixels.device)
    indices = pixels.permute(0, 3, 1, 2) + first[:, None, None]
    return table.index_select(0, indices.flatten()).view(indices.shape)
