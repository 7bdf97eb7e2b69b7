"""The DETRIS model."""

from .backbones import build_backbone
from .configuration_detris import DetrisConfig
from .modeling_detris import DetrisForReferringSegmentation, DetrisOutput

__all__ = ["DetrisConfig", "DetrisForReferringSegmentation", "DetrisOutput", "build_backbone"]
