"""Multi-head attention with the parameters of `nn.MultiheadAttention`, and dropout that is fast on a CPU.

Symbols: B batch, N queries, M keys, E width, H heads, D = E / H width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

# Attention weights that are in memory at the same time: 8 MB in float32, which fits the cache of most processors.
_CHUNK = 1 << 21


class MultiheadAttention(nn.MultiheadAttention):
    """Attention of queries (B, N, E) to keys and values (B, M, _), with the parameters of `nn.MultiheadAttention`.

    The forward of `nn.MultiheadAttention` transposes the inputs to (N, B, E). Under autocast without gradients,
    PyTorch then copies the weight for each of the N rows. Here all inputs stay (B, N, E) and contiguous. `out_proj` is
    called as a module, so that the hooks of accelerate load its weights if they are offloaded.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        kdim: int | None = None,
        vdim: int | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout=dropout, kdim=kdim, vdim=vdim, batch_first=True)

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, N, E). `key_padding_mask` (B, M) is True at keys that are ignored."""
        weights = self.in_proj_weight.chunk(3) if self._qkv_same_embed_dim else self._separate_weights()
        projected = (
            F.linear(x.contiguous(), weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, self.in_proj_bias.chunk(3), strict=True)
        )
        q, k, v = projected  # (B, H, _, D) each
        dropout = self.dropout if self.training else 0.0
        if dropout and key_padding_mask is None and q.device.type == "cpu" and not torch.compiler.is_compiling():
            wide = torch.promote_types(q.dtype, torch.float32)
            attended = _DropoutAttention.apply(q.to(wide), k.to(wide), v.to(wide), dropout).to(q.dtype)
        else:
            mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[union-attr]

    def _separate_weights(self) -> Any:
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight


class _DropoutAttention(torch.autograd.Function):
    """Attention with dropout of the attention weights, on a CPU and in float32 or higher, also under autocast.

    PyTorch's fused kernel for CPUs has no dropout, and its other implementation keeps three N×M matrices per head for
    the backward pass. This one goes through the heads in chunks that fit the cache, and computes the matrices again in
    the backward pass, with the same random bits.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))  # (B·H, _, D)
        out, sums = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
        ctx.dropout, ctx.seed = dropout, int(torch.randint(2**62, ()))
        for rows, weights, kept in _chunks(q, k, ctx):
            torch.bmm(q[rows] * q.shape[-1] ** -0.5, k[rows].transpose(1, 2), out=weights)
            highest = weights.amax(-1, keepdim=True)
            weights.sub_(highest).exp_()
            total = weights.sum(-1, keepdim=True)
            torch.add(highest, total.log(), out=sums[rows])
            torch.bmm(weights.mul_(kept), v[rows], out=out[rows])
            out[rows].div_(total * (1 - dropout))
        ctx.save_for_backward(q, k, v, out, sums)
        return out.view_as(query)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        grad, scale, keep = grad_output.flatten(0, 1), q.shape[-1] ** -0.5, 1 - ctx.dropout
        mean = (grad * out).sum(-1, keepdim=True)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for rows, weights, kept in _chunks(q, k, ctx):
            torch.bmm(q[rows] * scale, k[rows].transpose(1, 2), out=weights)
            weights.sub_(sums[rows]).exp_()
            change = torch.bmm(grad[rows], v[rows].transpose(1, 2)).mul_(kept).div_(keep)
            change.sub_(mean[rows]).mul_(weights)  # of the scores
            torch.bmm(weights.mul_(kept).transpose(1, 2), grad[rows], out=grads[2][rows])
            torch.bmm(change, k[rows], out=grads[0][rows])
            torch.bmm(change.transpose(1, 2), q[rows], out=grads[1][rows])
        batch = grad_output.shape[:2]
        return (
            grads[0].mul_(scale).unflatten(0, batch),
            grads[1].mul_(scale).unflatten(0, batch),
            grads[2].div_(keep).unflatten(0, batch),
            None,
        )


def _chunks(q: torch.Tensor, k: torch.Tensor, ctx: Any) -> Any:
    """Yield slices of the heads, and for each a buffer (heads, N, M) and which weights are kept, as 0.0 or 1.0.

    The buffers are used again. Which weights are kept depends on `ctx.seed` only. 16 random bits per weight give a
    dropout probability that differs from `ctx.dropout` by less than 1e-5.
    """
    generator = torch.Generator().manual_seed(ctx.seed)
    count, n, m = len(q), q.shape[1], k.shape[1]
    size = min(count, max(1, _CHUNK // (n * m)))
    weights, kept = q.new_empty(2, size, n, m)
    bits = torch.empty(-(-size * n * m // 4), dtype=torch.int64)
    lowest = round(ctx.dropout * 2**16) - 2**15
    for first in range(0, count, size):
        number = min(size, count - first)
        bits.random_(-(2**63), None, generator=generator)
        draws = bits.view(torch.int16)[: number * n * m].view(number, n, m)
        torch.ge(draws, lowest, out=kept[:number])
        yield slice(first, first + number), weights[:number], kept[:number]
