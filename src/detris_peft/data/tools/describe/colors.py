"""Names of an object's colors, where most people would agree on them.

Each pixel gets one of eleven names, or none if it is between two of them. An object has a color if a clear majority of
its pixels has it and no other color is frequent.

The limits are chosen for photos and were checked by eye; they are not a model of perception. The eleven names
are the basic color terms of Berlin and Kay (1969). Sentences do not use gray and brown: white, metallic and yellow
objects look like them in the shade.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

COLORS = ("black", "white", "gray", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
_ACHROMATIC = ("black", "white", "gray")
_UNCLEAR = ("gray", "brown")
# Minimum number of pixels of which a color can be named.
MIN_PIXELS = 150
# Minimum share of a mask that is inside its outline: reflections dominate the color of cutlery.
_MIN_INNER = 0.55
# An object has a color if this share of its pixels has it ...
_MAJORITY = {"black": 0.75, "white": 0.65}
_MAJORITY_OF_OTHERS = 0.5
# ... and at most this share has any other color of that kind.
_OTHER_CHROMATIC = 0.12
_OTHER_ACHROMATIC = 0.3
# An object clearly lacks a color if at most this share of its pixels has it or a similar color.
_ABSENT = 0.15
_SIMILAR = {
    "black": ("gray", "brown"),
    "white": ("gray", "yellow"),
    "gray": ("black", "white", "blue"),
    "red": ("orange", "pink", "brown"),
    "orange": ("red", "brown", "yellow"),
    "brown": ("red", "orange", "black", "yellow"),
    "yellow": ("orange", "white", "brown"),
    "green": ("yellow", "blue"),
    "blue": ("purple", "green", "gray"),
    "purple": ("blue", "pink"),
    "pink": ("red", "purple"),
}
# Share of dark pixels of a dark photo.
_DARK_PHOTO = 0.35
# A photo whose channels differ by less, in 99% of its pixels, is black and white, or toned.
_GRAY_PHOTO = 24


def is_colorful(pixels: np.ndarray) -> bool:
    """Return whether a photo (H, W, 3) of uint8 RGB is in color: a car that is white in a gray photo may be red."""
    low, high = _range_of_channels(pixels)
    chroma = high - low
    return bool(np.count_nonzero(chroma >= _GRAY_PHOTO) > 0.01 * chroma.size)


def is_dark(pixels: np.ndarray) -> bool:
    """Return whether so much of a photo (H, W, 3) of uint8 RGB is dark that dark objects need not be black."""
    _, high = _range_of_channels(pixels)
    return bool(np.count_nonzero(high < 50) > _DARK_PHOTO * high.size)


def color_shares(pixels: np.ndarray, foreground: np.ndarray) -> dict[str, float] | None:
    """Return the share of an object's pixels that has each of the `COLORS`.

    Args:
        pixels: uint8 RGB (h, w, 3).
        foreground: the object's mask (h, w).

    Returns:
        The shares, which need not add up to 1, or None if there are too few pixels.
    """
    # The outline of a mask is rarely exact.
    inner = cv2.erode(foreground, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if np.count_nonzero(inner) < max(MIN_PIXELS, _MIN_INNER * np.count_nonzero(foreground)):
        return None
    names = name_pixels(pixels[inner])
    counts = np.bincount(names, minlength=len(COLORS) + 1)
    return {color: int(counts[number]) / len(names) for number, color in enumerate(COLORS)}


def clear_color(shares: Mapping[str, float] | None) -> str | None:
    """Return the color of an object with these shares, or None if it has no single clear one."""
    if shares is None:
        return None
    color = max(COLORS, key=lambda name: shares[name])
    if color in _UNCLEAR or shares[color] < _MAJORITY.get(color, _MAJORITY_OF_OTHERS):
        return None
    for other in COLORS:
        limit = _OTHER_ACHROMATIC if other in _ACHROMATIC else _OTHER_CHROMATIC
        if other != color and shares[other] > limit:
            return None
    return color


def lacks_color(shares: Mapping[str, float] | None, color: str) -> bool:
    """Return whether nobody would call an object with these shares by this color."""
    return shares is not None and shares[color] + sum(shares[other] for other in _SIMILAR[color]) <= _ABSENT


def name_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return the index into `COLORS` of each pixel, or `len(COLORS)` for one without a clear name.

    Args:
        pixels: uint8 RGB (N, 3).
    """
    # Integers only, so that the result is the same on every machine.
    red, green, blue = (pixels[:, channel].astype(np.int32) for channel in range(3))
    low, value = (channel.astype(np.int32) for channel in _range_of_channels(pixels))
    chroma = value - low
    saturation = 100 * chroma // np.maximum(value, 1)  # in %
    safe = np.maximum(chroma, 1)
    hue = np.where(
        value == red,
        60 * (green - blue) // safe,
        np.where(value == green, 120 + 60 * (blue - red) // safe, 240 + 60 * (red - green) // safe),
    )
    hue = hue % 360  # in degrees
    names = np.full(len(pixels), len(COLORS))

    def name(color: str, where: np.ndarray) -> None:
        names[where & (names == len(COLORS))] = COLORS.index(color)

    name("black", (value < 70) & (chroma <= 16))
    name("white", (value >= 185) & (saturation <= 14))
    name("gray", (value >= 90) & (value <= 170) & (saturation <= 12))
    vivid = (saturation >= 45) & (value >= 80)
    name("red", vivid & ((hue >= 346) | (hue < 12)) & (saturation >= 55))
    name("orange", (saturation >= 65) & (value >= 175) & (hue >= 17) & (hue < 38))
    name("brown", (saturation >= 35) & (value < 150) & (value >= 55) & (hue >= 12) & (hue < 42))
    name("yellow", (saturation >= 50) & (value >= 165) & (hue >= 45) & (hue < 66))
    name("green", (saturation >= 30) & (value >= 60) & (hue >= 80) & (hue < 165))
    name("blue", (saturation >= 40) & (value >= 70) & (hue >= 195) & (hue < 248))
    name("purple", (saturation >= 35) & (value >= 70) & (hue >= 262) & (hue < 300))
    name("pink", (saturation >= 25) & (value >= 160) & (hue >= 310) & (hue < 352))
    return names


def _range_of_channels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest of the three channels; much faster than `min` and `max` over an axis of 3."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
