"""Loading of images: path, URL, PIL image, array or tensor."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..image_inputs import to_rgb
from ..images import is_url, open_image
from .url_images import fetch_image, shown_url

IMAGE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor)


def load_image(source: Any, name: str | None = None, allow_urls: bool = True) -> Image.Image:
    """Return an image as a decoded PIL image in RGB, upright.

    Args:
        source: path; http(s) URL; PIL image of any mode; array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
            uint16 or bool; tensor (C, H, W), (H, W, C) or (H, W) of uint8, or of floats in [0, 1].
        name: name in error messages; default: the path or URL, or "image".
        allow_urls: whether to download URLs; if False, they are an error.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the URL cannot be downloaded.
        ValueError: the file is not an image, is damaged or too large; see `detris_peft.images.open_image`.
        TypeError: `source` has another type.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        is_address = is_url(path)
        name = name or (shown_url(path) if is_address else path)
        if is_address and allow_urls:  # a local file with such a name is opened by an absolute path
            return Image.fromarray(to_rgb(fetch_image(path), name))
        return Image.fromarray(to_rgb(open_image(source, name), name))
    return Image.fromarray(to_rgb(source, name or "image"))
