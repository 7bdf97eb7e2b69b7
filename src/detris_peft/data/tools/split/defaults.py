"""Default values and limits of `detris data split`."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)
# Bits of 64. Measured on 228 photos of COCO, see docs/your-own-data.md.
MAX_DISTANCE = 12
HIGHEST_DISTANCE = 32  # the mean distance of different images
