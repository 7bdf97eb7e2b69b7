"""The Compacter tuner."""

from __future__ import annotations

from typing import Any

from ..sequential import SequentialAdapterModel
from .config import CompacterConfig
from .layer import CompacterLayer


class CompacterModel(SequentialAdapterModel):
    """An encoder with Compacter adapters. It is called like the plain encoder."""

    prefix = "compacter_"
    tuner_layer_cls = CompacterLayer
    config_cls = CompacterConfig

    def _share_modules(self, branches: list[Any]) -> None:
        for branch in branches[1:]:
            branch.matrices = branches[0].matrices
