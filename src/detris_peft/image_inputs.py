"""Checks of the image processor's inputs, and their conversion to arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

from .images import decode, open_image, unknown_range
from .mask_images import read_foreground


def as_list(items) -> list | None:
    """Return the items as a list; a single image, mask or sentence becomes a list of one; None stays None.

    An array or a tensor of four dimensions is a batch of images.
    """
    if items is None or isinstance(items, list):
        return items
    if isinstance(items, (np.ndarray, torch.Tensor)) and items.ndim == 4:
        return list(items)
    single = (str, bytes, os.PathLike, dict, Image.Image, np.ndarray, torch.Tensor)
    several = isinstance(items, Iterable) and not isinstance(items, single)
    return list(items) if several else [items]


def as_sizes(sizes, name: str = "original_sizes") -> list[tuple[int, int]] | None:
    """Return a tensor, array or list (B,2) as a list of (H, W) in Python integers; None stays None.

    Raises:
        ValueError: the sizes are not pairs of positive integers; the message starts with `name`.
    """
    if sizes is None:
        return None
    try:
        pairs = [(int(height), int(width)) for height, width in sizes]
        valid = all(min(pair) > 0 and pair == tuple(size) for pair, size in zip(pairs, sizes, strict=True))
    except (TypeError, ValueError, OverflowError):  # not pairs, text, NaN, ...
        valid, pairs = False, []
    if not valid:
        raise ValueError(f"{name}: expected one (H, W) of positive integers per image, got {sizes!r:.80}; pass these")
    return pairs


def check_counts(**inputs: list | None) -> None:
    """Check that all inputs that are not None have the same, non-zero number of items.

    Raises:
        ValueError: the numbers differ or are 0, or masks or original_sizes were passed without images.
    """
    counts = {name: len(items) for name, items in inputs.items() if items is not None}
    for name, count in counts.items():
        if not count:
            raise ValueError(f"{name}: expected at least one, got an empty list; pass one or more")
    for name in ("masks", "original_sizes"):
        if name in counts and "images" not in counts:
            raise ValueError(f"{name}: expected images as well, got none; pass the images that they belong to")
    if len(set(counts.values())) != 1:
        got = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        raise ValueError(f"expected one sentence and one mask per image, got {got}; pass the same number of each")


def to_rgb(image, name: str = "image") -> np.ndarray:
    """Convert an image to uint8 (H,W,3), with its EXIF orientation applied.

    Args:
        image: path of a local file, PIL image of any mode, array (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8, uint16
            or bool, or tensor (C,H,W), (H,W,C) or (H,W) of uint8, or of floats in [0, 1].
        name: name of the image in error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, its range of values is unknown, or it cannot be decoded; the message starts
            with `name`, or with the path.
        TypeError: the image has another type.
    """
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    elif isinstance(image, torch.Tensor):
        image = _tensor_pixels(image, name)
    if isinstance(image, Image.Image):
        if problem := unknown_range(image):
            raise ValueError(f"{name}: {problem}")
        image = decode(image, name)
        if image.mode.startswith("I"):
            image = np.asarray(image)
            if image.size and image.dtype == np.int32 and image.min() >= 0 and image.max() < 1 << 16:
                image = image.astype(np.uint16)  # older versions of Pillow open 16-bit gray images in mode "I"
        else:
            # Pillow warns if a palette with transparency is converted to RGB directly. RGBA keeps the colors.
            if image.mode != "RGB":
                image = image.convert("RGBA" if image.mode == "P" else "RGB")
            image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"{name}: expected a path, a PIL image, an (H, W, C) array or a (C, H, W) tensor, got "
            f"{type(image).__name__}; open or convert it first"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0 or image.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"{name}: expected shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}; "
            "put the channels last"
        )
    if np.issubdtype(image.dtype, np.uint16):
        image = (image >> 8).astype(np.uint8)  # the high byte, like libpng
    elif image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise ValueError(
            f"{name}: expected uint8, uint16 or bool, got {image.dtype}, whose range is unknown; "
            "scale it to uint8 in [0, 255]"
        )
    image = image[..., :3]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _tensor_pixels(image: torch.Tensor, name: str) -> np.ndarray:
    """Convert a tensor with channels first or last to an array (H,W) or (H,W,C) of integers or bool."""
    image = image.detach().cpu()
    channels = (1, 3, 4)
    if image.ndim == 3 and image.shape[0] in channels:  # PyTorch's order has priority
        image = image.permute(1, 2, 0)
    elif image.ndim != 2 and not (image.ndim == 3 and image.shape[2] in channels):
        raise ValueError(
            f"{name}: expected a tensor of shape (C, H, W), (H, W, C) or (H, W) with 1, 3 or 4 channels, got "
            f"{tuple(image.shape)}; pass one image, or a list of them"
        )
    if not image.is_floating_point():
        return image.numpy()
    image = image.float()
    if image.numel() and not (image.min() >= 0 and image.max() <= 1):  # also false for NaN
        raise ValueError(
            f"{name}: expected floats from 0 to 1, got {float(image.min()):.3g} to {float(image.max()):.3g}; scale "
            "them, and pass an image that is not normalized"
        )
    return (image * 255).round().byte().numpy()


def reduction_factor(shape: tuple[int, ...], size: tuple[int, ...], name: str) -> int:
    """Return the factor by which a JPEG decoder reduced an image of `size` (H, W) to `shape` (H, W)."""
    for factor in (1, 2, 4, 8):
        if tuple(shape) == tuple(-(-side // factor) for side in size):
            return factor
    raise ValueError(
        f"{name}: expected its original size {size} or a half, a quarter or an eighth of it, got {shape}; "
        "omit original_sizes, or pass the size of the file"
    )


def to_foreground(mask, size: tuple[int, int], name: str) -> np.ndarray:
    """Convert the mask of an image of `size` (H, W) to bool (H,W)."""
    if isinstance(mask, Image.Image):
        try:
            pixels, _ = read_foreground(decode(mask, name))
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    elif isinstance(mask, torch.Tensor):
        pixels = mask.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()  # NumPy has no bfloat16
    elif isinstance(mask, np.ndarray):
        pixels = mask
    else:
        raise TypeError(
            f"{name}: expected an (H, W) array, tensor or PIL image, got {type(mask).__name__}; convert it first"
        )
    if pixels.shape != tuple(size):
        raise ValueError(
            f"{name}: expected shape {tuple(size)}, the size of its image after EXIF rotation, got {pixels.shape}; "
            "pass a mask of that size"
        )
    if pixels.dtype.kind not in "buif" or (pixels.dtype.kind == "f" and np.isnan(pixels).any()):
        got = "NaN" if pixels.dtype.kind == "f" else pixels.dtype
        raise ValueError(f"{name}: expected numbers or booleans, foreground above 0, got {got}; pass a mask of those")
    return pixels > 0


def checked_logits(outputs) -> torch.Tensor:
    """Return the logits (B,1,h',w') of a model's output."""
    logits = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"outputs: expected the output of the model or its logits, got {type(outputs).__name__}; pass one of them"
        )
    if logits.ndim != 4 or logits.shape[1] != 1 or not logits.is_floating_point():
        raise ValueError(
            f"outputs: expected floating-point logits (B, 1, H, W), got {logits.dtype} of shape "
            f"{tuple(logits.shape)}; pass the model's logits"
        )
    if logits.isnan().any():
        raise ValueError("outputs: expected logits, got NaN; check the model's weights and its precision")
    return logits
