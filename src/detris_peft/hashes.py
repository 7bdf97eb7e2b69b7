"""Hashes of what the results of a run or job depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def sha256_of_texts(texts: Iterable[str]) -> str:
    """Return the SHA-256 of texts, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def sha256_of_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a hash of the names of weights and of about 16 values of each: enough to distinguish models.

    Args:
        weights: names and tensors, such as `model.named_parameters()`.
    """
    flat = ((name, weight.detach().flatten()) for name, weight in weights)
    return sha256_of_texts(f"{name} {values[:: max(1, len(values) // 16)].float().tolist()}" for name, values in flat)
