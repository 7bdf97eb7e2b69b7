"""Text adapters for text encoders, as a peft tuner."""

from ..registry import register
from .config import TextAdapterConfig
from .layer import TextAdapter, TextAdapterLayer
from .model import TextAdapterModel

register("text_adapter", TextAdapterConfig, TextAdapterModel)

__all__ = ["TextAdapter", "TextAdapterConfig", "TextAdapterLayer", "TextAdapterModel"]
