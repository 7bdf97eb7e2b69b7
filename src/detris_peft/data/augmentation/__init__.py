"""Random augmentation of samples, and which expressions allow a mirrored image."""

from .mirroring import can_be_flipped, swap_sides
from .transforms import RandomAugmentation

__all__ = ["RandomAugmentation", "can_be_flipped", "swap_sides"]
