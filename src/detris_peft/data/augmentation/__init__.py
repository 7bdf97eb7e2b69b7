"""Random augmentation of samples, mosaics, expressions without a target, and which expressions allow them."""

from .mirroring import can_be_flipped, swap_sides
from .mosaic import Mosaic, can_be_in_mosaic
from .no_target import AbsentSentences
from .transforms import RandomAugmentation

__all__ = [
    "AbsentSentences",
    "Mosaic",
    "RandomAugmentation",
    "can_be_flipped",
    "can_be_in_mosaic",
    "swap_sides",
]
