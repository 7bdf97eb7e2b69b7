"""int8 weights for the frozen encoders of a model, by torchao."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from ..modeling import DetrisForReferringSegmentation
from .devices import is_dispatched, weight_device

QUANTIZATIONS = ("int8",)
_DEVICES = ("cpu", "cuda")


def quantize_model(model: DetrisForReferringSegmentation, quantization: str = "int8") -> None:
    """Quantize the weights of the frozen linear layers of both encoders in place, for prediction.

    Weights are int8 with one scale per output channel; products are computed in the dtype of the model. Adapters,
    head, embeddings, convolutions and norms are not changed. Move and cast the model before it is quantized.

    Args:
        model: the model, on its device and in its dtype.
        quantization: int8.

    Raises:
        ValueError: the quantization is unknown, torchao is missing, the device is not supported, or the model is
            quantized already, distributed by accelerate, or without frozen linear layers.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantize: expected {' or '.join(QUANTIZATIONS)}, got {quantization!r:.80}; change it.")
    if is_dispatched(model):
        raise ValueError(
            "quantize: expected a model on one device, got one that accelerate distributes; omit device_map."
        )
    check_quantization(weight_device(model.projector))
    if any(
        _is_quantized(weight) for encoder in (model.vision_model, model.text_model) for weight in encoder.parameters()
    ):
        raise ValueError("quantize: expected encoders that are not quantized, got quantized ones; omit quantize.")
    # Weights of the frozen backbones only: the adapters may be frozen too.
    unsaved = set(model._keys_to_ignore_on_save or ())
    # No subclasses: `nn.MultiheadAttention` reads the weight of its output projection without calling the module.
    frozen = [
        module for name, module in model.named_modules() if type(module) is nn.Linear and f"{name}.weight" in unsaved
    ]
    if not frozen:
        raise ValueError(
            "quantize: expected frozen linear layers in the encoders, found none: they were trained; omit quantize."
        )
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for module in frozen:
        quantize_(module, Int8WeightOnlyConfig(set_inductor_config=False))


def check_quantization(device: torch.device, option: str = "quantize") -> None:
    """Raise a ValueError if torchao is missing or a device is not supported.

    Args:
        device: the device of the model.
        option: the option or argument that requests the quantization, for the message.
    """
    if find_spec("torchao") is None:
        raise ValueError(
            f"{option}: expected the package torchao, found no such package; run: pip install 'detris-peft[quantize]'."
        )
    if device.type not in _DEVICES:
        raise ValueError(
            f"{option}: expected a device among {', '.join(_DEVICES)}, got {device}; choose one, or omit {option}."
        )


def _is_quantized(weight: torch.Tensor) -> bool:
    """Return whether a weight holds integers, as those of bitsandbytes and torchao do."""
    return not weight.is_floating_point() or type(weight.data) is not torch.Tensor
