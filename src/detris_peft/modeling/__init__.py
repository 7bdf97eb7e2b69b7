"""The DETRIS model."""

from .configuration_detris import DetrisConfig
from .modeling_detris import DetrisForReferringSegmentation, DetrisOutput

__all__ = ["DetrisConfig", "DetrisForReferringSegmentation", "DetrisOutput"]
