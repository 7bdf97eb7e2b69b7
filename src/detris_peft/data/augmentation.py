"""Random changes of a picture, its mask and its sentence, off by default as in the paper.

A flipped picture of "the cup on the left" shows it on the right: the sentence is flipped too. The pictures are changed
by kornia, which carries masks along: `pip install 'detris-peft[augment]'`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image

from .samples import Sample

# "left", "leftmost", "left-hand", "lefthand", "lefty", "leftside"; not the "right" of "bright".
_SIDES = re.compile(r"\b(left|right)(?=most|-?hand|-?side|er|ie|y|s|ward|wards|\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def swap_sides(sentence: str) -> str:
    """ "The leftmost cup, right of the Left plate" → "The rightmost cup, left of the Right plate"."""

    def swap(found: re.Match[str]) -> str:
        side = found[0]
        other = _OTHER[side.lower()]
        return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other

    return _SIDES.sub(swap, sentence)


@dataclass
class RandomAugmentation:
    """Flip, scale and colour, each sample by the random numbers that it is given.

    Args:
        flip: probability of a horizontal flip, with which "left" and "right" in the sentence change places.
        scale: range of the factor by which the picture is scaled about its centre; its size in pixels stays, what
            becomes free is CLIP's mean colour. A sample whose target would leave the picture wholly is not scaled.
        colour: largest relative change of brightness, contrast and saturation.

    Raises:
        ValueError: kornia is not installed, or a value is out of its range.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.8, 1.25)
    colour: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1 or not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.colour < 1:
            raise ValueError(f"{self} is out of range: flip in [0, 1], 0 < scale[0] <= scale[1], colour in [0, 1).")
        if find_spec("kornia") is None:
            raise ValueError("Augmentation needs kornia: pip install 'detris-peft[augment]'.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from kornia.geometry.transform import hflip

        flipped = rng.random() < self.flip
        picture = np.array(sample.image.convert("RGB"))
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(sample.mask)[None, None].float()
        if flipped:
            image, mask = hflip(image), hflip(mask)
        with torch.random.fork_rng(devices=[]):  # kornia draws from PyTorch's generator, which belongs to others
            torch.manual_seed(int(rng.integers(2**63)))
            image, scaled = self._transform(image, mask)
        changed = (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return replace(
            sample,
            image=Image.fromarray(changed),
            mask=(scaled[0, 0] > 0.5).byte().numpy(),
            sentence=swap_sides(sample.sentence) if flipped else sample.sentence,
        )

    def _transform(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomAffine

        mean = torch.tensor(_BORDER).view(1, 3, 1, 1)
        affine = AugmentationSequential(RandomAffine(0.0, scale=self.scale, p=1.0), data_keys=["input", "mask"])
        moved: Any = affine(image - mean, mask)  # what becomes free is 0, the mean
        if (moved[1] > 0.5).any() or not mask.any():
            image, mask = moved[0] + mean, moved[1]
        jiggle = ColorJiggle(self.colour, self.colour, self.colour, p=1.0)
        return jiggle(image.clamp(0, 1)), mask


# The letterbox's border; as in `processing_detris.CLIP_MEAN`, of which data knows nothing.
_BORDER = (0.48145466, 0.4578275, 0.40821073)
