"""Position embeddings of DINOv2, interpolated as in the training of the released DETRIS weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEmbeddings


def use_official_position_table(vision_model: PreTrainedModel) -> None:
    """Make a DINOv2 model interpolate its position embeddings as in the training of the released DETRIS weights."""
    embeddings: Any = vision_model.embeddings
    # Another class rather than another method of the instance: it is pickled, and copied for `nn.DataParallel`.
    embeddings.__class__ = _OFFICIAL.get(type(embeddings), type(embeddings))


class _OfficialPositions(nn.Module):
    position_embeddings: nn.Parameter
    patch_embeddings: Any

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Interpolate the position embeddings: (B, 1 + h·w, C) → (1, 1 + h·w, C) for height × width pixels.

        Bicubic without antialiasing, with scale factor (h + 0.1) / n for an n×n table. DINOv2's code adds 0.1 to avoid
        a rounding error; it shifts every position slightly.
        """
        table = self.position_embeddings
        patch_height, patch_width = self.patch_embeddings.patch_size
        h, w = height // patch_height, width // patch_width
        side = round((table.shape[1] - 1) ** 0.5)
        if h == w == side:
            return table
        grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class OfficialDinov2Embeddings(_OfficialPositions, Dinov2Embeddings):
    """Embeddings of DINOv2."""


class OfficialDinov2WithRegistersEmbeddings(_OfficialPositions, Dinov2WithRegistersEmbeddings):
    """Embeddings of DINOv2 with registers."""


_OFFICIAL = {
    Dinov2Embeddings: OfficialDinov2Embeddings,
    Dinov2WithRegistersEmbeddings: OfficialDinov2WithRegistersEmbeddings,
}
