"""Adapters of the paper and of its comparisons as peft tuners. Importing this module registers them."""

from .bottleneck import BottleneckAdapterConfig, BottleneckAdapterModel
from .compacter import CompacterConfig, CompacterModel
from .config import AdapterConfig, ParallelAdapterConfig, SequentialAdapterConfig
from .dense_aligner import DenseAlignerConfig, DenseAlignerModel
from .layer import AdapterLayer
from .parallel import ParallelAdapterLayer
from .registry import register
from .sequential import SequentialAdapterLayer
from .state_dict import adapter_state_dict, check_weights, load_adapter_state_dict
from .text_adapter import TextAdapterConfig, TextAdapterModel

__all__ = [
    "AdapterConfig",
    "AdapterLayer",
    "BottleneckAdapterConfig",
    "BottleneckAdapterModel",
    "CompacterConfig",
    "CompacterModel",
    "DenseAlignerConfig",
    "DenseAlignerModel",
    "ParallelAdapterConfig",
    "ParallelAdapterLayer",
    "SequentialAdapterConfig",
    "SequentialAdapterLayer",
    "TextAdapterConfig",
    "TextAdapterModel",
    "adapter_state_dict",
    "check_weights",
    "load_adapter_state_dict",
    "register",
]
