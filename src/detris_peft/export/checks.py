"""Checks before an export: models, image sizes and file names that are not supported raise an error."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from ..defaults import MAX_IMAGE_SIZE
from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor, check_processor

SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_format(format: str, file: str | os.PathLike, option: str = "file") -> None:
    """Raise an error for an unknown format, another suffix of the file, or missing packages.

    Args:
        format: `"torch_export"` or `"onnx"`.
        file: the file to write.
        option: the option or argument that names the file, for the message.

    Raises:
        ValueError: the format or the suffix is wrong.
        ImportError: a package that the format needs is not installed.
    """
    if format not in SUFFIXES:
        raise ValueError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r:.80}; choose one of them.")
    name, suffix = os.fspath(file), SUFFIXES[format]
    if not name.endswith(suffix) or os.path.basename(name) == suffix:
        raise ValueError(f"{option} {name}: expected a name that ends with {suffix} for {format}; change it.")
    if format == "onnx":
        for package in _ONNX_PACKAGES:
            try:
                importlib.import_module(package)
            except ImportError:
                raise ImportError(
                    f"format onnx: expected the package {package}, found no such package; run: pip install "
                    "'detris-peft[export]'."
                ) from None


def check_model(model: Any, processor: Any) -> None:
    """Raise an error for a model that cannot be exported, or a processor that does not belong to it.

    Raises:
        TypeError: the model or the processor is something else.
        ValueError: an encoder has several adapters, the weights are not float32 in the memory of the CPU, or the
            processor belongs to another model.
    """
    if not isinstance(model, DetrisForReferringSegmentation):
        raise TypeError(
            f"model: expected a DetrisForReferringSegmentation, got {type(model).__name__}; load one with "
            "from_pretrained."
        )
    if not isinstance(processor, DetrisProcessor):
        raise TypeError(
            f"processor: expected a DetrisProcessor, got {type(processor).__name__}; load the one that was saved with "
            "the model."
        )
    check_processor(model.config, processor)
    for kind in ("vision_model", "text_model"):
        _check_adapters(kind, getattr(model, kind))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32 weights, got {tensor.dtype}; call model.float() first.")
        if not tensor.is_floating_point() and isinstance(tensor, torch.nn.Parameter):
            raise ValueError(
                f"{name}: expected float32 weights, got quantized ones ({tensor.dtype}); load the encoder without "
                "quantization."
            )
        if type(tensor) not in (torch.nn.Parameter, torch.Tensor):
            raise ValueError(
                f"{name}: expected a plain tensor, got a {type(tensor).__name__}; load the encoder without "
                "quantization or sharding."
            )
        if tensor.device.type != "cpu":
            fix = "load the model without offloading" if tensor.is_meta else 'call model.to("cpu") first'
            raise ValueError(f"{name}: expected weights on the CPU, got some on {tensor.device}; {fix}.")


def check_image_size(model: DetrisForReferringSegmentation, image_size: Any, option: str = "image_size") -> None:
    """Raise a ValueError if a side of the images in pixels does not fit the image encoder."""
    patch = model.config.vision_config.patch_size
    is_integer = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not is_integer or not 0 < image_size <= MAX_IMAGE_SIZE or image_size % patch:
        valid = min(max(round(image_size / patch), 1), MAX_IMAGE_SIZE // patch) * patch if is_integer else 32 * patch
        raise ValueError(
            f"{option}: expected a multiple of the patch size, {patch}, up to {MAX_IMAGE_SIZE} pixels, got "
            f"{image_size!r:.40}; use {valid}."
        )


def _check_adapters(kind: str, encoder: Any) -> None:
    names = [*getattr(encoder, "peft_config", {})]
    if len(names) > 1:
        active = [name for name in getattr(encoder, "active_adapters", []) if name in names] or names
        other = next(name for name in names if name != active[0])
        raise ValueError(
            f"{kind}: expected one adapter in an exported model, got {len(names)} ({', '.join(names)}); keep one and "
            f"delete the others, for example model.{kind}.delete_adapter({other!r})."
        )
