"""Dense Aligner and text adapter as peft tuners. Importing this module registers them."""

from .config import ParallelAdapterConfig
from .dense_aligner import DenseAlignerConfig, DenseAlignerModel
from .layer import ParallelAdapterLayer
from .text_adapter import TextAdapterConfig, TextAdapterModel

__all__ = [
    "DenseAlignerConfig",
    "DenseAlignerModel",
    "ParallelAdapterConfig",
    "ParallelAdapterLayer",
    "TextAdapterConfig",
    "TextAdapterModel",
]
