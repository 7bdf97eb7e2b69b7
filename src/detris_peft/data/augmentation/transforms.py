"""Random flip, scale and color changes of a sample, off by default as in the paper.

A mirrored image of "the cup on the left" shows the cup on the right, so the sentence is mirrored too. Image and mask
are transformed by kornia: `pip install kornia`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from ..row_decoder import Sample
from .mirroring import can_be_flipped, swap_sides


@dataclass
class RandomAugmentation:
    """Randomly flips, scales and recolors a sample.

    A flip also mirrors text in the image. Images of 16 or 32 bits per channel are returned unchanged.

    Args:
        flip: probability of a horizontal flip, which exchanges "left" and "right" in the sentence. An image is not
            flipped if its sentence is not known to be true of the flipped image; see `can_be_flipped`.
        scale: range of the factor by which the content is scaled about the image's center. The image size in pixels
            does not change, and new borders get the color `image_mean`. A sample whose target would move out of
            the image is not scaled.
        color: largest relative change of brightness, contrast and saturation.
        image_mean: padding color, one value in [0, 1] per channel: pass `DetrisProcessor.image_mean` to match
            the letterbox's padding.

    Raises:
        ValueError: kornia is not installed, or a value is out of range.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.8, 1.25)
    color: float = 0.2
    image_mean: Sequence[float] = field(kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1 or not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.color < 1:
            raise ValueError(f"expected flip in [0, 1], 0 < scale[0] <= scale[1] and color in [0, 1), got {self}")
        if find_spec("kornia") is None:
            raise ValueError("augmentation: expected the package kornia to be installed; run: pip install kornia.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from kornia.geometry.transform import hflip

        # Always draw all random numbers so that results do not depend on which transforms are enabled.
        flipped, scale = rng.random() < self.flip and can_be_flipped(sample.sentence), rng.uniform(*self.scale)
        colors = rng.uniform(1 - self.color, 1 + self.color, 3)
        original = sample.image
        if not isinstance(original, np.ndarray):
            if original.mode[0] in "IF":
                return sample
            original = np.array(original.convert("RGBA" if original.mode == "P" else "RGB"))[..., :3]
        mask = torch.from_numpy(_downsampled(sample.mask, original.shape[:2]))[None, None].float()
        image = _recolored(original, *colors)
        if flipped:
            image, mask = hflip(image), hflip(mask)
        image, mask = _scaled(image, mask, scale, self.image_mean)
        pixels = (image[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return replace(
            sample,
            image=pixels if isinstance(sample.image, np.ndarray) else Image.fromarray(pixels),
            mask=mask[0, 0].byte().numpy(),
            sentence=swap_sides(sample.sentence) if flipped else sample.sentence,
        )


def _downsampled(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Downsample a mask (H, W) to the size of a reduced JPEG; keep pixels that are at least half covered."""
    if mask.shape == size:
        return mask
    factor = round(max(mask.shape) / max(size))
    padding = [(0, factor * small - large) for small, large in zip(size, mask.shape, strict=True)]
    covered = np.pad(mask, padding).reshape(size[0], factor, size[1], factor).mean(axis=(1, 3))
    return (covered >= min(0.5, covered.max() or 1)).astype(np.uint8)


def _recolored(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Change the colors of a uint8 image (H,W,3) and return float32 (1,3,H,W) in [0,1]."""
    from kornia.enhance import adjust_brightness_accumulative, adjust_saturation_with_gray_subtraction

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = adjust_brightness_accumulative(image, brightness)
    # Computed with NumPy, because PyTorch's sum depends on the number of threads, which differs in workers.
    mean = float(image.numpy().mean())
    image = (mean + contrast * (image - mean)).clamp(0, 1)
    return adjust_saturation_with_gray_subtraction(image, saturation)


def _scaled(
    image: torch.Tensor, mask: torch.Tensor, scale: float, image_mean: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale an image (1,3,H,W) and its mask (1,1,H,W) about their center; unchanged if the mask would vanish."""
    from kornia.geometry.transform import warp_affine

    height, width = image.shape[-2:]
    x, y = (width - 1) / 2 * (1 - scale), (height - 1) / 2 * (1 - scale)
    matrix = torch.tensor([[[scale, 0, x], [0, scale, y]]], dtype=torch.float32)
    scaled_mask = warp_affine(mask, matrix, (height, width), mode="nearest")
    if mask.any() and not scaled_mask.any():
        return image, mask
    mean = torch.tensor(image_mean).view(1, 3, 1, 1)
    # `warp_affine` pads with 0, so the image is warped relative to the mean.
    return warp_affine(image - mean, matrix, (height, width)) + mean, scaled_mask
