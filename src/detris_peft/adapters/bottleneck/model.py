"""The bottleneck adapter tuner."""

from __future__ import annotations

from ..sequential import SequentialAdapterModel
from .config import BottleneckAdapterConfig
from .layer import BottleneckAdapterLayer


class BottleneckAdapterModel(SequentialAdapterModel):
    """An encoder with bottleneck adapters. It is called like the plain encoder."""

    prefix = "bottleneck_adapter_"
    tuner_layer_cls = BottleneckAdapterLayer
    config_cls = BottleneckAdapterConfig
