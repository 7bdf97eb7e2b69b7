"""The Dense Aligner tuner."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..block_layouts import IMAGE_BLOCKS
from ..model import ParallelAdapterModel
from .config import DenseAlignerConfig
from .layer import DenseAlignerLayer


class DenseAlignerModel(ParallelAdapterModel):
    """An image encoder with Dense Aligners.

    Call it with `text_states` (B, L, T), the text encoder's last hidden states. The patch grid is read off
    `pixel_values`; a backbone called in another way needs `patch_grid=(h, w)` too.
    """

    prefix = "dense_aligner_"
    tuner_layer_cls = DenseAlignerLayer
    config_cls = DenseAlignerConfig
    layouts = IMAGE_BLOCKS
    second_input = "the keyword arguments (text_states)"

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        patch_size = self.get_model_config(model).get("patch_size")
        if patch_size is not None and not _patch_grid_hooks(model):
            model.register_forward_pre_hook(_AddPatchGrid(patch_size), with_kwargs=True)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(merge, **kwargs)
        for key in _patch_grid_hooks(model):
            del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
        return model


class _AddPatchGrid:
    """Forward pre-hook of the encoder: sends the patch grid down with `text_states`, so that any shape works."""

    def __init__(self, patch_size: int | tuple[int, int]) -> None:
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        pixels = args[0] if args else kwargs.get("pixel_values")
        if not isinstance(pixels, torch.Tensor) or "text_states" not in kwargs or "patch_grid" in kwargs:
            return args, kwargs
        sides, patch = pixels.shape[-2:], self.patch_size
        if sides[0] % patch[0] or sides[1] % patch[1]:
            raise ValueError(
                f"pixel_values is {sides[0]} high and {sides[1]} wide: both sides must be multiples of the patch, "
                f"{patch[0]} and {patch[1]}."
            )
        return args, {**kwargs, "patch_grid": (sides[0] // patch[0], sides[1] // patch[1])}


def _patch_grid_hooks(model: nn.Module) -> list[int]:
    return [key for key, hook in model._forward_pre_hooks.items() if isinstance(hook, _AddPatchGrid)]
