"""Check that `torch.compile` works on a device."""

from __future__ import annotations

import time

import torch


def check_compiler(device: torch.device, option: str = "compile") -> None:
    """Raise a ValueError if `torch.compile` fails on a device, for example without a C++ compiler or Triton.

    Args:
        device: the device of the model.
        option: the option or argument that requests the compilation, for the message.
    """
    # A new constant: the cache on disk would hide that the compiler is missing.
    constant = float(time.time_ns() % 2**24)
    try:
        torch.compile(lambda x: x + constant)(torch.zeros(8, device=device))
    except Exception as error:  # of dynamo, the backend or the compiler
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        needed = "a C++ compiler (such as g++)" if device.type == "cpu" else "Triton and a C compiler"
        raise ValueError(
            f"{option}: expected that torch.compile works on {device}, got {reason:.200}; install {needed}, or omit "
            f"{option}."
        ) from error
