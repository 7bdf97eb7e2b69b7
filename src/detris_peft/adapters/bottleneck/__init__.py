"""The bottleneck adapter: a peft tuner for image and text encoders."""

from ..registry import register
from .config import BottleneckAdapterConfig
from .layer import BottleneckAdapter, BottleneckAdapterLayer
from .model import BottleneckAdapterModel

register("bottleneck_adapter", BottleneckAdapterConfig, BottleneckAdapterModel)

__all__ = ["BottleneckAdapter", "BottleneckAdapterConfig", "BottleneckAdapterLayer", "BottleneckAdapterModel"]
