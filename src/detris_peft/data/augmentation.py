"""Random changes of a image, its mask and its sentence, off by default as in the paper.

A mirrored image of "the cup on the left" shows it on the right: the sentence is mirrored too. Image and mask are
moved by kornia: `pip install 'detris-peft[augment]'`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from .samples import Sample

_SIDES = re.compile(
    r"\b(left|right)(?=most|-?hand|-?side|er|ie|y|s|wards?|\b)"  # "leftmost", "lefthand"; not "bright", "leftover"
    r"|\b(lft|lt|rgt|rt)\b"  # as people type in a hurry
    r"|(?<![\w'’])([lr])(?![\w'’-]| shape)",  # noqa: RUF001  "guy on r"; not "l-shaped", "l'homme"
    re.IGNORECASE,
)
_OTHER = {
    "left": "right",
    "right": "left",
    "lft": "rgt",
    "rgt": "lft",
    "lt": "rt",
    "rt": "lt",
    "l": "r",
    "r": "l",
}
# Where "right" is no side, or a mirrored image is described by other words yet.
_FIXED = re.compile(
    r"\bo\W?\s?clock\b|\bright[- ](?:angle|side[- ]up)|\ball right\b"
    # "right behind it": just there; but "on the right behind it".
    r"|(?<!\bthe )(?<!\bon )(?<!\bto )(?<!\bat )(?<!\bfar )(?<!\btop )(?<!\bupper )(?<!\blower )(?<!\bbottom )"
    r"(?<!\bfront )(?<!\bback )(?<!\bmost )\bright (?:behind|next|beside|above|below|beneath|under|underneath|before"
    r"|after|between|in front|in the (?:middle|cent)|here|there|now|where)",
    re.IGNORECASE,
)
# The letterbox's border, which is `processing_detris.CLIP_MEAN`, of which data knows nothing.
_BORDER = (0.48145466, 0.4578275, 0.40821073)


def swap_sides(sentence: str) -> str:
    """ "The leftmost cup, right of the Left plate" → "The rightmost cup, left of the Right plate"."""

    def swap(found: re.Match[str]) -> str:
        side = found[0]
        other = _OTHER[side.lower()]
        return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other

    return _SIDES.sub(swap, sentence)


def can_be_flipped(sentence: str) -> bool:
    """Whether `swap_sides` says of the mirrored image what the sentence says of the image.

    Not so of "the cup right behind it", where "right" is no side, and of "the plate at 3 o'clock".
    """
    return _FIXED.search(sentence) is None


@dataclass
class RandomAugmentation:
    """Flip, scale and color, each sample by the random numbers that it is given.

    What is written in a image is mirrored with it. Images of 16 or 32 bits are left as they are.

    Args:
        flip: probability of a horizontal flip, with which "left" and "right" in the sentence change places. A image
            whose sentence cannot be flipped is not: see `can_be_flipped`.
        scale: range of the factor by which the image is scaled about its center; its size in pixels stays, what
            becomes free is CLIP's mean color. A sample whose target would leave the image wholly is not scaled.
        color: largest relative change of brightness, contrast and saturation.

    Raises:
        ValueError: kornia is not installed, or a value is out of its range.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.8, 1.25)
    color: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1 or not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.color < 1:
            raise ValueError(f"{self} is out of range: flip in [0, 1], 0 < scale[0] <= scale[1], color in [0, 1).")
        if find_spec("kornia") is None:
            raise ValueError("Augmentation needs kornia: pip install 'detris-peft[augment]'.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from kornia.geometry.transform import hflip

        # All are drawn whatever becomes of them: a sample's numbers do not depend on the settings.
        flipped, scale = rng.random() < self.flip and can_be_flipped(sample.sentence), rng.uniform(*self.scale)
        colors = rng.uniform(1 - self.color, 1 + self.color, 3)
        if sample.image.mode[0] in "IF":
            return sample
        original = np.array(sample.image.convert("RGBA" if sample.image.mode == "P" else "RGB"))[..., :3]
        mask = torch.from_numpy(_reduced(sample.mask, original.shape[:2]))[None, None].float()
        image = _recolored(original, *colors)
        if flipped:
            image, mask = hflip(image), hflip(mask)
        image, mask = _scaled(image, mask, scale)
        pixels = (image[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return replace(
            sample,
            image=Image.fromarray(pixels),
            mask=mask[0, 0].byte().numpy(),
            sentence=swap_sides(sample.sentence) if flipped else sample.sentence,
        )


def _reduced(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) on the coarser grid on which a large JPEG was decoded: what is at least half covered."""
    if mask.shape == size:
        return mask
    factor = round(max(mask.shape) / max(size))
    padding = [(0, factor * coarse - fine) for coarse, fine in zip(size, mask.shape, strict=True)]
    covered = np.pad(mask, padding).reshape(size[0], factor, size[1], factor).mean(axis=(1, 3))
    return (covered >= min(0.5, covered.max() or 1)).astype(np.uint8)


def _recolored(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """uint8 (H,W,3) → float32 (1,3,H,W) in [0,1]."""
    from kornia.enhance import adjust_brightness_accumulative, adjust_saturation_with_gray_subtraction

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = adjust_brightness_accumulative(image, brightness)
    # By NumPy, since what PyTorch sums up depends on its number of threads, and so on who reads the sample.
    mean = float(image.numpy().mean())
    image = (mean + contrast * (image - mean)).clamp(0, 1)
    return adjust_saturation_with_gray_subtraction(image, saturation)


def _scaled(image: torch.Tensor, mask: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(1,3,H,W) and (1,1,H,W) about their center; as they came where nothing of the mask would be left."""
    from kornia.geometry.transform import warp_affine

    height, width = image.shape[-2:]
    x, y = (width - 1) / 2 * (1 - scale), (height - 1) / 2 * (1 - scale)
    matrix = torch.tensor([[[scale, 0, x], [0, scale, y]]], dtype=torch.float32)
    moved = warp_affine(mask, matrix, (height, width), mode="nearest")
    if mask.any() and not moved.any():
        return image, mask
    mean = torch.tensor(_BORDER).view(1, 3, 1, 1)
    return warp_affine(image - mean, matrix, (height, width)) + mean, moved  # what becomes free is 0, the mean
