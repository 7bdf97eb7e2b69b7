"""Images in any of the forms that people have: path, URL, PIL image, array or tensor."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..image_inputs import to_rgb
from ..images import is_url, open_image
from .url_images import fetch_image

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
        ValueError: it is not an image, or a damaged or too large one; see `detris_peft.images.open_image`.
        TypeError: it has another type.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str) and is_url(path) and allow_urls:
            # A local file with such a name is opened by an absolute path.
            return Image.fromarray(to_rgb(fetch_image(path), name or path))
        return Image.fromarray(to_rgb(open_image(source, name), name or os.fsdecode(path)))
    return Image.fromarray(to_rgb(source, name or "image"))
