"""DETRIS for Hugging Face models: adapters with which frozen encoders segment what a sentence refers to.

Importing the package registers the peft types DENSE_ALIGNER and TEXT_ADAPTER.
"""

from transformers import AutoProcessor

from .adapters import DenseAlignerConfig, TextAdapterConfig
from .modeling import DetrisConfig, DetrisForReferringSegmentation
from .processing_detris import DetrisProcessor

# Here and not in the processor's own file, which knows nothing of the model.
AutoProcessor.register(DetrisConfig, DetrisProcessor)

__version__ = "0.1.0.dev0"

__all__ = [
    "DenseAlignerConfig",
    "DetrisConfig",
    "DetrisForReferringSegmentation",
    "DetrisProcessor",
    "TextAdapterConfig",
    "__version__",
]
