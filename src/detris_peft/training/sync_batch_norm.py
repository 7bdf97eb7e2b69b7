"""BatchNorm over the samples of all processes, on any device.

PyTorch's own SyncBatchNorm runs on accelerators only; on a CPU, where DDP is tested, the same is done here with two
all-reduces that autograd knows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes; each process' gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradients[0])


class SyncBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm` for devices that it refuses: (B, C, ...) → the same; statistics in float32 or higher."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm takes (B, C, ...), not {tuple(input.shape)}.")

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
        self._move_statistics(mean.detach(), variance.detach(), float(total))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centered * scale.view(shape)
        if self.affine:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _move_statistics(self, mean: torch.Tensor, variance: torch.Tensor, total: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (total / max(total - 1, 1)), momentum)  # unbiased, as BatchNorm keeps it


def convert_sync_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm in place; parameters, statistics and their names stay."""
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
