"""DETRIS for Hugging Face models: adapters that let frozen encoders segment what a referring expression describes.

Importing the package registers the peft types DENSE_ALIGNER, TEXT_ADAPTER, BOTTLENECK_ADAPTER and COMPACTER, and the
model's processors with `AutoProcessor` and `AutoImageProcessor`.
"""

from transformers import AutoImageProcessor, AutoProcessor

from .adapters import BottleneckAdapterConfig, CompacterConfig, DenseAlignerConfig, TextAdapterConfig
from .image_processing_detris import DetrisImageProcessor
from .modeling import BridgerConfig, DetrisConfig, DetrisForReferringSegmentation
from .processing_detris import DetrisProcessor

# Registered here to keep the processors independent of the model.
AutoProcessor.register(DetrisConfig, DetrisProcessor)
# Registered for both backends of transformers, which otherwise warns if its preferred one is missing.
AutoImageProcessor.register(
    DetrisConfig, image_processor_classes={"pil": DetrisImageProcessor, "torchvision": DetrisImageProcessor}
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
    "DetrisProcessor",
    "TextAdapterConfig",
    "__version__",
]
