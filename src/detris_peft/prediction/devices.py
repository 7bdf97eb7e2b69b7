"""The device of a predictor: the one that is named, or the first accelerator, or the CPU."""

from __future__ import annotations

import torch


def usable_device(name: str | torch.device | None, option: str = "device") -> torch.device:
    """Return the named device; default: the first accelerator (CUDA, MPS, ...), if there is one, else the CPU.

    Args:
        name: a device such as "cuda:1", or None.
        option: the option or argument that names it, for the message.

    Raises:
        ValueError: the device is unknown or not available.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return accelerator or torch.device("cpu")
    count = torch.accelerator.device_count() if accelerator else 0
    available = ["cpu", *(f"{accelerator.type}:{i}" for i in range(count) if accelerator)]
    try:
        device = torch.device(name)
        if device.type == "cpu" or f"{device.type}:{device.index or 0}" in available:
            return device
    except (RuntimeError, TypeError):  # not the name of a device
        pass
    raise ValueError(
        f"{option} {name}: expected {' or '.join(available)}, got a device that is not available; choose another one."
    )


def is_dispatched(model: torch.nn.Module) -> bool:
    """Return whether accelerate moves the inputs or weights of a model, or of one of its encoders, in each forward."""
    return hasattr(model, "hf_device_map") or any(hasattr(module, "_hf_hook") for module in model.modules())


def weight_device(module: torch.nn.Module) -> torch.device:
    """Return the device of the weights of a module; the CPU if all of them are offloaded."""
    devices = (weight.device for weight in module.parameters() if weight.device.type != "meta")
    return next(devices, torch.device("cpu"))


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating-point dtype that is given as a torch dtype or by its name; None stays None.

    Raises:
        ValueError: it is not float32, bfloat16 or float16.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r:.80}; pass one of them.")
    return found
