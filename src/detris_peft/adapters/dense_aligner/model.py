"""The Dense Aligner tuner."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..block_layouts import IMAGE_BLOCKS
from ..parallel import ParallelAdapterModel
from .config import DenseAlignerConfig
from .layer import DenseAlignerLayer


class DenseAlignerModel(ParallelAdapterModel):
    """An image encoder with Dense Aligners.

    Call it with `text_states` (B, L, T), the text encoder's last hidden states. The patch grid is computed from
    `pixel_values`; a backbone without that argument also needs `patch_grid=(h, w)`.
    """

    prefix = "dense_aligner_"
    tuner_layer_cls = DenseAlignerLayer
    config_cls = DenseAlignerConfig
    layouts = IMAGE_BLOCKS
    second_input = "the keyword arguments (text_states)"
    patch_grid_hook: torch.utils.hooks.RemovableHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patch_size = self.get_model_config(self.model).get("patch_size")
        if patch_size is not None:
            self.patch_grid_hook = self.model.register_forward_pre_hook(_AddPatchGrid(patch_size), with_kwargs=True)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(merge, **kwargs)
        if self.patch_grid_hook is not None:
            self.patch_grid_hook.remove()
        return model


class _AddPatchGrid:
    """Forward pre-hook of the encoder that adds `patch_grid` to the keyword arguments, for images of any size."""

    def __init__(self, patch_size: int | tuple[int, int]) -> None:
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        pixels = args[0] if args else kwargs.get("pixel_values")
        if not isinstance(pixels, torch.Tensor) or "text_states" not in kwargs or "patch_grid" in kwargs:
            return args, kwargs
        sides, patch = pixels.shape[-2:], self.patch_size
        if sides[0] % patch[0] or sides[1] % patch[1]:
            raise ValueError(
                f"pixel_values: expected height and width to be multiples of the patch size, {patch[0]} and {patch[1]}"
                f", got {sides[0]} and {sides[1]}; resize or pad the images."
            )
        return args, {**kwargs, "patch_grid": (sides[0] // patch[0], sides[1] // patch[1])}
