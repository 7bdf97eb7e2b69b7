"""The two adapters as peft tuner types; importing this registers them."""

from .dense_aligner import DenseAlignerConfig, DenseAlignerModel
from .text_adapter import TextAdapterConfig, TextAdapterModel

__all__ = ["DenseAlignerConfig", "DenseAlignerModel", "TextAdapterConfig", "TextAdapterModel"]
