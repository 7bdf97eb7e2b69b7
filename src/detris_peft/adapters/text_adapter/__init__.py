"""The text adapter: a peft tuner for text encoders."""

from ..registry import register
from .config import TextAdapterConfig
from .layer import TextAdapter, TextAdapterLayer
from .model import TextAdapterModel

register("text_adapter", TextAdapterConfig, TextAdapterModel)

__all__ = ["TextAdapter", "TextAdapterConfig", "TextAdapterLayer", "TextAdapterModel"]
