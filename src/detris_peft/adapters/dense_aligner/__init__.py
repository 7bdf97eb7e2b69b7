"""The Dense Aligner: a peft tuner for image encoders."""

from ..registry import register
from .config import DenseAlignerConfig
from .layer import DenseAligner, DenseAlignerLayer
from .model import DenseAlignerModel

register("dense_aligner", DenseAlignerConfig, DenseAlignerModel)

__all__ = ["DenseAligner", "DenseAlignerConfig", "DenseAlignerLayer", "DenseAlignerModel"]
