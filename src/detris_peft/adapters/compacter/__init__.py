"""Compacter: a peft tuner for image and text encoders."""

from ..registry import register
from .config import CompacterConfig
from .layer import Compacter, CompacterLayer
from .model import CompacterModel

register("compacter", CompacterConfig, CompacterModel)

__all__ = ["Compacter", "CompacterConfig", "CompacterLayer", "CompacterModel"]
