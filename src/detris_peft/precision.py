"""Precisions: fp32, bf16, fp16, and auto, which chooses by device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_EARLIER = {"no": "fp32"} | {dtype: precision for precision, dtype in _DTYPES.items()}
# Options that `precision` replaces.
EARLIER_OPTIONS = ("mixed_precision", "dtype")


def resolve_precision(
    precision: str, device: str | torch.device | None, training: bool, option: str = "precision"
) -> str:
    """Return fp32, bf16 or fp16.

    Automatically, training uses bf16 where the device computes in it: on GPUs that support it, and on CPUs with bf16
    instructions. Prediction uses bf16 on such CPUs only, where the agreement of the masks was measured.

    Args:
        precision: auto, fp32, bf16 or fp16.
        device: the device of the model; None: the first accelerator, else the CPU.
        training: whether a model is trained, not only evaluated.
        option: the option or argument that names the precision, for the message.

    Raises:
        ValueError: the precision is unknown, or the device does not support it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{option}: expected one of {', '.join(PRECISIONS)}, got {precision!r:.80}; choose one.")
    kind = _device_type(device) if precision in ("auto", "fp16") else None
    if precision == "fp16" and kind == "cpu":
        raise ValueError(f"{option}: expected auto, fp32 or bf16 on a CPU, got 'fp16'; choose one, or use a GPU.")
    if precision != "auto":
        return precision
    computes_bf16 = cpu_computes_bf16() if kind == "cpu" else training and kind == "cuda" and _gpu_computes_bf16()
    return "bf16" if computes_bf16 else "fp32"


def precision_dtype(precision: str) -> torch.dtype:
    """Return the dtype of a resolved precision."""
    import torch

    return getattr(torch, _DTYPES[precision])


def describe_precision(precision: str, device: str | torch.device | None, auto: bool = False) -> str:
    """Return one line with a resolved precision and the property of the device that decides about auto.

    Args:
        precision: fp32, bf16 or fp16.
        device: the device of the model; None: the first accelerator, else the CPU.
        auto: whether the precision was chosen by the device.
    """
    kind = _device_type(device)
    where = f"a CPU {'with' if cpu_computes_bf16() else 'without'} bf16 instructions" if kind == "cpu" else kind
    return f"Precision: {precision} ({'auto, ' if auto else ''}on {where})"


def current_name(precision: Any) -> Any:
    """Return the current name of a precision: fp32 for `no` of --mixed_precision and `float32` of --dtype."""
    if precision is False:  # YAML reads `no` as a boolean
        precision = "no"
    return _EARLIER.get(precision, precision) if isinstance(precision, str) else precision


def describe_replacement(option: str, value: Any = None) -> str:
    """Return what to use instead of an option that `precision` replaces.

    Args:
        option: `mixed_precision` or `dtype`, with or without dashes in front.
        value: its value, if known.
    """
    name = option.lstrip("-").replace("-", "_")
    dashes = option[: len(option) - len(option.lstrip("-"))]
    separator = " " if dashes else ": "
    new = current_name(value)
    use = f"{dashes}precision" + (f"{separator}{new}" if new in PRECISIONS else "")
    return f"expected {dashes}precision, which replaces {dashes}{name}, got {dashes}{name}; use {use}"


def with_precision(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options in which `mixed_precision` of earlier versions has become `precision`."""
    if "mixed_precision" not in options:
        return options
    precision = current_name(options["mixed_precision"])
    return {**{name: value for name, value in options.items() if name != "mixed_precision"}, "precision": precision}


def cpu_computes_bf16() -> bool:
    """Return whether this CPU has instructions for bf16 products (AVX-512 BF16 or AMX)."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _gpu_computes_bf16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _device_type(device: str | torch.device | None) -> str:
    import torch

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator.type if accelerator else "cpu"
    return torch.device(device).type
