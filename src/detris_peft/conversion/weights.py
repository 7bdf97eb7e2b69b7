"""Check the weights of a file before they are converted."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ..safe_loading import printable

_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_weights(weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Check that weights are finite floats with data; only BatchNorm's `num_batches_tracked` are integers.

    Raises:
        ValueError: a weight is not; the message names its key.
    """
    for key, value in weights.items():
        problem = _problem(key, value)
        if problem:
            raise ValueError(
                f"{path}: expected finite floating-point weights, got {problem} in {printable(key)}; the file is "
                "damaged or of another kind, download it again or pass another file."
            )


def _problem(key: str, value: torch.Tensor) -> str:
    is_count = key.endswith("num_batches_tracked")
    if value.is_meta:
        return "a tensor without data (device meta)"
    if value.layout != torch.strided or not value.numel():
        return "an empty or sparse tensor"
    if value.dtype not in (torch.int64, torch.int32) if is_count else value.dtype not in _FLOAT_TYPES:
        return f"type {str(value.dtype).removeprefix('torch.')}"
    if is_count:
        return "a negative count" if bool((value < 0).any()) else ""
    return "" if bool(value.isfinite().all()) else "NaN or infinite values"
