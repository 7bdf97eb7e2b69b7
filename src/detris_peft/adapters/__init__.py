"""Dense Aligner and text adapter as peft tuners. Importing this module registers them."""

from .config import ParallelAdapterConfig
from .dense_aligner import DenseAlignerConfig, DenseAlignerModel
from .layer import ParallelAdapterLayer
from .registry import register
from .state_dict import adapter_state_dict, check_weights, load_adapter_state_dict
from .text_adapter import TextAdapterConfig, TextAdapterModel

__all__ = [
    "DenseAlignerConfig",
    "DenseAlignerModel",
    "ParallelAdapterConfig",
    "ParallelAdapterLayer",
    "TextAdapterConfig",
    "TextAdapterModel",
    "adapter_state_dict",
    "check_weights",
    "load_adapter_state_dict",
    "register",
]
