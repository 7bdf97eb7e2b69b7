"""RefShapes: a synthetic referring-segmentation dataset in REFER's layout."""

from .generate import write_refshapes

__all__ = ["write_refshapes"]
