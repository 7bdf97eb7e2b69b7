"""BatchNorm with statistics over the samples of all ranks, on any device.

PyTorch's own SyncBatchNorm requires an accelerator. On CPU, where DDP is tested, this replacement uses two
differentiable all-reduces.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all ranks; the gradient is summed over all ranks too."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradients[0])


class SyncBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm` for CPU: (B, C, ...) → (B, C, ...). Statistics are computed in float32 or higher."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm: expected an input (B, C, ...), got shape {tuple(input.shape)}.")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [0, *range(2, values.dim())]
        count = values.new_tensor([values.numel() // values.shape[1]])
        sums = _Sum.apply(torch.cat([values.sum(dims), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        shape = [1, -1, *[1] * (values.dim() - 2)]
        centered = values - mean.view(shape)
        variance = _Sum.apply((centered * centered).sum(dims)) / total
        self._update_statistics(mean.detach(), variance.detach(), float(total))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centered * scale.view(shape)
        if self.affine:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: torch.Tensor, variance: torch.Tensor, total: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (total / max(total - 1, 1)), momentum)  # unbiased, as in BatchNorm


def convert_sync_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm of a model in place. Parameters, statistics and their names are unchanged."""
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                new = SyncBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                new._parameters, new._buffers, new.training = child._parameters, child._buffers, child.training
                setattr(parent, name, new)
