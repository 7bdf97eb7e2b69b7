"""Checks of the inputs of a forward pass."""

from __future__ import annotations

from typing import Any

import torch


def check_inputs(pixel_values: Any, input_ids: Any, labels: Any, image_indices: Any) -> None:
    """Raise a ValueError that names the input whose shape or type is not that of `forward`."""
    inputs = (
        ("pixel_values", pixel_values, 4, "images (B, 3, H, W)"),
        ("input_ids", input_ids, 2, "tokens (B, L)"),
        ("labels", labels, 3, "masks (B, H, W)"),
        ("image_indices", image_indices, 1, "the image of each sentence (B,)"),
    )
    for name, value, ndim, expected in inputs:
        if value is None and name in ("labels", "image_indices"):
            continue
        if not isinstance(value, torch.Tensor) or value.ndim != ndim or not value.numel():
            got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name}: expected a tensor of {expected}, got {got}; pass what the processor returns.")
        if image_indices is None and value.shape[0] != pixel_values.shape[0]:
            raise ValueError(
                f"{name}: expected one for each image, got {value.shape[0]} for {pixel_values.shape[0]} images; pass "
                "as many."
            )
    if image_indices is not None:
        _check_indices(image_indices, input_ids, labels, len(pixel_values))
    if input_ids.is_floating_point():
        raise ValueError(f"input_ids: expected integers, got {input_ids.dtype}; pass what the processor returns.")
    if labels is not None and labels.shape[1:] != pixel_values.shape[2:]:
        raise ValueError(
            f"labels: expected masks with the height and width of pixel_values, {tuple(pixel_values.shape[2:])}, got "
            f"{tuple(labels.shape[1:])}; let the processor prepare both."
        )


def _check_indices(image_indices: torch.Tensor, input_ids: torch.Tensor, labels: Any, images: int) -> None:
    for name, value in (("image_indices", image_indices), ("labels", labels)):
        if value is not None and len(value) != len(input_ids):
            raise ValueError(
                f"{name}: expected one for each sentence, got {len(value)} for {len(input_ids)} sentences; pass as "
                "many."
            )
    if image_indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"image_indices: expected integers, got {image_indices.dtype}; pass the image of each sentence."
        )
    if not _can_be_read(image_indices):
        return
    lowest, highest = (int(value) for value in image_indices.aminmax())
    if lowest < 0 or highest >= images:
        raise ValueError(
            f"image_indices: expected images from 0 to {images - 1}, got {lowest if lowest < 0 else highest}; pass "
            "positions in pixel_values."
        )


def check_masked_view(masked_pixel_values: Any, masked_input_ids: Any, pixel_values: Any, input_ids: Any) -> None:
    """Raise a ValueError unless the inputs of a masked view have the shapes of those of the clean view."""
    for name, value, clean in (
        ("masked_pixel_values", masked_pixel_values, pixel_values),
        ("masked_input_ids", masked_input_ids, input_ids),
    ):
        if not isinstance(value, torch.Tensor) or value.shape != clean.shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"{name}: expected a tensor of the shape of {name.removeprefix('masked_')}, {tuple(clean.shape)}, got "
                f"{got}; pass both inputs of the masked view."
            )


def check_tokens(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Raise a ValueError for tokens beyond the vocabulary of the text encoder."""
    if not _can_be_read(input_ids):
        return
    lowest, highest = (int(value) for value in input_ids.aminmax())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"input_ids: expected tokens from 0 to {vocab_size - 1}, the vocabulary of the text encoder, got "
            f"{lowest if lowest < 0 else highest}; use the tokenizer of the text encoder."
        )


def _can_be_read(values: torch.Tensor) -> bool:
    """Return whether reading values is free: on a GPU it would wait for the device."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel() > 0
