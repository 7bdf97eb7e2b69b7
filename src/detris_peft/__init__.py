"""DETRIS for Hugging Face models: adapters that let frozen encoders segment what a referring expression describes.

Importing the package is quick: its names are imported when they are first used. It registers with peft the types
DENSE_ALIGNER, TEXT_ADAPTER, BOTTLENECK_ADAPTER and COMPACTER, and with transformers the model, its processors and its
pipeline, as soon as peft or transformers is imported; see `detris_peft.registration`.
"""

from typing import TYPE_CHECKING

from .lazy_names import lazy_names
from .registration import register_on_import

if TYPE_CHECKING:
    from .adapters import BottleneckAdapterConfig, CompacterConfig, DenseAlignerConfig, TextAdapterConfig
    from .image_processing_detris import DetrisImageProcessor
    from .modeling import BridgerConfig, DetrisConfig, DetrisForReferringSegmentation
    from .prediction import DetrisPredictor, Prediction
    from .processing_detris import DetrisProcessor
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adapters": ("BottleneckAdapterConfig", "CompacterConfig", "DenseAlignerConfig", "TextAdapterConfig"),
            "image_processing_detris": ("DetrisImageProcessor",),
            "modeling": ("BridgerConfig", "DetrisConfig", "DetrisForReferringSegmentation"),
            "prediction": ("DetrisPredictor", "Prediction"),
            "processing_detris": ("DetrisProcessor",),
        },
    )

__version__ = "0.1.0"

__all__ = [
    "BottleneckAdapterConfig",
    "BridgerConfig",
    "CompacterConfig",
    "DenseAlignerConfig",
    "DetrisConfig",
    "DetrisForReferringSegmentation",
    "DetrisImageProcessor",
    "DetrisPredictor",
    "DetrisProcessor",
    "Prediction",
    "TextAdapterConfig",
    "__version__",
]

register_on_import()
