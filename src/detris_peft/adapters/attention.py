"""Multi-head attention whose weights may be offloaded."""

from __future__ import annotations

from typing import Any

from torch import nn


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` that also works with the CPU and disk offload of accelerate.

    Offloaded weights are loaded by a hook on the call of their module. PyTorch uses the weights of `out_proj` without
    calling it, so its hook runs here.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self.out_proj, "_hf_hook", None)
        if hook is None:
            return super().forward(*args, **kwargs)
        hook.pre_forward(self.out_proj)
        try:
            return super().forward(*args, **kwargs)
        finally:
            hook.post_forward(self.out_proj, None)
