"""Cast a model to a lower precision, with BatchNorm in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def cast_model(model: nn.Module, dtype: torch.dtype | None, trained_dtype: torch.dtype | None = None) -> None:
    """Cast the floating-point weights of a model in place, except those of BatchNorms, which become float32.

    PyTorch's LayerNorm, BatchNorm and softmax compute in float32 internally and accept inputs of a lower precision.
    The running statistics of BatchNorm need more than the 8 bits of bfloat16. As when transformers loads a model,
    buffers that are not saved (rotary frequencies) keep their dtype. Integers, and so quantized weights, stay.

    Args:
        model: the model.
        dtype: dtype of the weights; None: as they are.
        trained_dtype: smallest dtype of the weights that require gradients, float64 stays; default: `dtype`.
    """
    for module in model.modules():
        unsaved = module._non_persistent_buffers_set
        tensors = [
            *module.parameters(recurse=False),
            *(buffer for name, buffer in module.named_buffers(recurse=False) if name not in unsaved),
        ]
        for tensor in tensors:
            if not tensor.is_floating_point():
                continue
            if trained_dtype is not None and tensor.requires_grad:
                target = torch.promote_types(tensor.dtype, trained_dtype)
            else:
                target = dtype or tensor.dtype
            if isinstance(module, _BatchNorm):
                target = torch.promote_types(target, torch.float32)
            if tensor.dtype != target:
                tensor.grad = None  # a gradient must have the dtype of its weight
                tensor.data = tensor.data.to(target)
