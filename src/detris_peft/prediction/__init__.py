"""Prediction with a trained model: one class shared by `detris predict`, the pipeline and the demo page."""

from .devices import usable_device
from .image_loading import load_image
from .prediction import Prediction
from .predictor import DetrisPredictor, PreparedImage

__all__ = ["DetrisPredictor", "Prediction", "PreparedImage", "load_image", "usable_device"]
