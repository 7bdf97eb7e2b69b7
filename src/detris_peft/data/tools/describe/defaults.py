"""Default values of `detris data describe`."""

from __future__ import annotations

PREVIEW = "preview.png"  # written by the command
MIN_AREA = 0.005
MAX_EXPRESSIONS = 3
