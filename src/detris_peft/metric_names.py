"""Names of the metrics that `detris_peft.metrics` computes."""

from __future__ import annotations

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRIC_NAMES = ("mIoU", "oIoU", *(f"Pr@{t}" for t in PRECISION_THRESHOLDS))
NO_TARGET_METRIC_NAMES = ("gIoU", "cIoU", "N-acc", "T-acc")
