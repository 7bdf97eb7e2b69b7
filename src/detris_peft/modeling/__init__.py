"""The DETRIS model: configuration, forward, loss, saving and loading."""

from .bridger_config import BridgerConfig
from .configuration_detris import DetrisConfig
from .encoders import build_backbone
from .modeling_detris import DetrisForReferringSegmentation, DetrisOutput

__all__ = ["BridgerConfig", "DetrisConfig", "DetrisForReferringSegmentation", "DetrisOutput", "build_backbone"]
