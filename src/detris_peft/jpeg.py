"""Faster decoding of JPEGs, with simplejpeg if it is installed. The pixels are those of Pillow, bit by bit.

Both packages contain libjpeg-turbo. simplejpeg returns its output as it is, while Pillow copies it twice.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .images import orientation


def decode_pixels(image: Image.Image, reduction: int = 1) -> np.ndarray | None:
    """Decode an image from `images.open_header` to RGB, uint8 (H,W,3), if it is a JPEG that simplejpeg decodes.

    Args:
        image: the image, which can still be decoded by Pillow afterwards.
        reduction: 1, 2, 4 or 8: decode at this fraction of the size, rounded up.

    Returns:
        None if Pillow must decode it: simplejpeg is not installed, or decodes differently; or the image is no plain
        JPEG, is rotated, or is damaged in any way.
    """
    simplejpeg = _matching_decoder()
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or orientation(image) != 1:
        return None
    file = image.fp  # type: ignore[attr-defined]  # of an ImageFile
    try:
        file.seek(0)
        return _decode(simplejpeg, file.read(), image.size, reduction)
    except OSError:  # Pillow's error names the cause
        return None


def _decode(simplejpeg: Any, data: bytes, size: tuple[int, int], reduction: int) -> np.ndarray | None:
    """Decode a JPEG of `size` (W, H); None if it is damaged."""
    width, height = (-(-side // reduction) for side in size)
    options = {"min_height": height, "min_width": width, "min_factor": reduction} if reduction > 1 else {}
    try:
        if simplejpeg.decode_jpeg_header(data, strict=True, **options)[:2] != (height, width):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True, **options)
    except ValueError:
        return None


@cache
def _matching_decoder() -> Any:
    """Return simplejpeg if it is installed and agrees with Pillow, which may be built with another library."""
    try:
        import simplejpeg
    except ImportError:
        return None
    pixels = np.random.default_rng(0).integers(0, 256, (35, 51, 3), dtype=np.uint8)
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2 and 4:2:0
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling)
        for reduction in (1, 2, 4, 8):
            image = Image.open(file)
            if reduction > 1:
                image.draft("RGB", (image.width // reduction, image.height // reduction))
            found = _decode(simplejpeg, file.getvalue(), (51, 35), reduction)
            if found is None or not np.array_equal(found, np.asarray(image)):
                return None
    return simplejpeg
