"""Masks stored as images: which pixels are foreground, whatever the color mode of the file."""

from __future__ import annotations

import numpy as np
from PIL import Image

# A label map has at most this many values, or only small ones; more values mean soft edges, noise, or a photo.
_MAX_LABELS = 7
_MAX_LABEL = 64
# Values below the one and from the other on are black and white with noise, of a mask with soft edges.
_DARK, _BRIGHT = 33, 200
_LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
_LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")


def read_foreground(image: Image.Image) -> tuple[np.ndarray, int]:
    """Return which pixels of a mask image are foreground, and how many different values they have.

    Black is background, and every other value is foreground. A black-and-white mask with soft edges or noise is
    divided at half of the maximum. In a palette image index 0 is background, unless it has another color than black
    and the image has black pixels as well.

    Returns:
        A bool array (H, W), and 1 for a mask of one target, more for several values or colors.

    Raises:
        ValueError: the format blurs edges, the image is transparent or has colors that do not separate foreground from
            background, or its values are those of a photo.
    """
    if image.format in _LOSSY_FORMATS or image.info.get("compression") in _LOSSY_COMPRESSIONS:
        kind = image.format if image.format in _LOSSY_FORMATS else f"{image.format} with lossy compression"
        raise ValueError(f"expected a lossless mask, got one in the format {kind}, which blurs edges; save it as PNG")
    if image.mode == "1":
        return np.asarray(image), 1
    _check_opaque(image)
    if image.mode == "P":
        found = _palette_foreground(image)
        if found is not None:
            return found
        image = image.convert("RGBA").convert("L")  # directly, Pillow warns if the palette has transparency
    if image.mode == "L":
        return _foreground_of_levels(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _foreground_of_numbers(np.asarray(image))
    return _color_foreground(image.convert("RGB"))


def is_lossy_webp(data: bytes) -> bool:
    """Return whether a file is a WebP image that holds a lossy frame."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and b"VP8 " in data[12:]


def _check_opaque(image: Image.Image) -> None:
    if "A" not in image.mode and "a" not in image.mode and "transparency" not in image.info:
        return
    rgba = np.asarray(image.convert("RGBA"))
    color, alpha = rgba[..., :3].any(axis=-1), rgba[..., 3]
    if alpha.min() < 255 and not np.array_equal(color, alpha > 0):
        raise ValueError(
            "expected a mask without transparency, got one whose transparent pixels are not its black ones; save it "
            "as white on black without an alpha channel"
        )


def _palette_foreground(image: Image.Image) -> tuple[np.ndarray, int] | None:
    """Return what `read_foreground` returns for a palette image, or None if it is to be read by its gray values."""
    indices = np.asarray(image)
    used = np.flatnonzero(image.histogram()[:256])
    colors = np.zeros((256, 3), np.uint8)
    palette = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    colors[: len(palette)] = palette
    visible = np.asarray(colors.any(axis=1))
    if np.array_equal(visible[used], used > 0) or not visible[used].any():  # all black: a label map without colors
        is_foreground = np.arange(256) > 0
    elif visible[0] and not visible[used].all():
        is_foreground = visible
    else:
        raise ValueError(
            "expected a palette mask whose background is index 0 and black, got other colors; save it as white on "
            "black"
        )
    is_gray = (colors[used] == colors[used][:, :1]).all()
    if is_gray and len(used) > 2 and visible[used].any():
        return None
    return is_foreground[indices], int(is_foreground[used].sum())


def _color_foreground(image: Image.Image) -> tuple[np.ndarray, int]:
    pixels = np.asarray(image)
    brightest = pixels.max(axis=-1)
    colors = image.getcolors(256)
    if colors is None or np.array_equal(brightest, pixels.min(axis=-1)):
        return _foreground_of_levels(Image.fromarray(brightest))
    return brightest > 0, sum(any(color) for _, color in colors)  # type: ignore[arg-type]  a tuple per color


def _foreground_of_numbers(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return what `read_foreground` returns for values of 16 bits or more."""
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and (pixels == np.floor(pixels)).all()):
            raise ValueError("expected a mask of integers, got fractions or NaN; threshold it, and save it as PNG")
        pixels = pixels.astype(np.int64)
    if pixels.min() < 0:
        raise ValueError("expected a mask of values of at least 0, got negative ones; save it as white on black")
    if pixels.max() < 256:
        return _foreground_of_levels(Image.fromarray(pixels.astype(np.uint8)))
    high_bytes = Image.fromarray(np.minimum(pixels >> 8, 255).astype(np.uint8))
    if _is_black_and_white(np.array(high_bytes.histogram())):
        return np.asarray(high_bytes) >= 128, 1
    return pixels > 0, len(np.unique(pixels[pixels > 0]))


def _foreground_of_levels(image: Image.Image) -> tuple[np.ndarray, int]:
    """Return what `read_foreground` returns for an 8-bit gray image."""
    counts, pixels = np.array(image.histogram()), np.asarray(image)
    values = np.flatnonzero(counts[1:]) + 1
    if len(values) <= 1:
        return pixels > 0, 1
    if _is_black_and_white(counts):
        return pixels >= 128, 1
    if len(values) > _MAX_LABELS and values[values < 255].max() >= _MAX_LABEL:
        raise ValueError(
            f"expected a mask of black and white or of a few values, got {len(values)} gray values, as in a photo; "
            "threshold it"
        )
    return pixels > 0, len(values)


def _is_black_and_white(counts: np.ndarray) -> bool:
    """Return whether a histogram of 256 levels is that of a black-and-white mask with soft edges or noise."""
    dark, between, bright = counts[1:_DARK].sum(), counts[_DARK:_BRIGHT].sum(), counts[_BRIGHT:].sum()
    if np.count_nonzero(counts[_BRIGHT:]) > 1:
        return bool(between <= 0.1 * counts.sum())
    return bool(np.count_nonzero(counts[1:]) <= _MAX_LABELS and not between and 0 < 9 * dark <= bright)
