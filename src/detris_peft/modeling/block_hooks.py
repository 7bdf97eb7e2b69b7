"""Hooks on the blocks of an image encoder: take feature maps out, and repeat images for several sentences.

The hooks are added once, when the model is created, and do nothing in other calls of the encoder. transformers can
return the outputs of all blocks as well (`output_hidden_states`), but it keeps all of them in memory and splits the
graph of torch.compile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..adapters.dense_aligner.layer import DenseAlignerLayer
from .encoder_run import encoder_blocks

_IMAGE_INDICES = "image_indices"  # keyword argument of the blocks: the block that repeats the images, and (B,) indices


class BlockOutputs(threading.local):
    """Outputs of the blocks in the running call, keyed by block. None outside of a call. Separate for each thread."""

    states: dict[int, torch.Tensor] | None = None

    def __reduce__(self) -> tuple:
        # The outputs belong to a call, so copies and pickles start without any.
        return type(self), ()


class _StoreOutput:
    """Forward hook of a block that stores its output. A class, so that it can be copied and pickled."""

    def __init__(self, block: int, outputs: BlockOutputs) -> None:
        self.block, self.outputs = block, outputs

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.outputs.states is not None:
            self.outputs.states[self.block] = output[0] if isinstance(output, tuple) else output


class _RepeatImages:
    """Forward pre-hook of a block: if it is the first one that reads the text, continue with one image per sentence.

    The indices come with the call, as a keyword argument, so that gradient checkpointing gets them again.
    """

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        first, indices = kwargs.pop(_IMAGE_INDICES, (None, None))
        if first == self.block:
            args = (args[0].index_select(0, indices.to(args[0].device)), *args[1:])
        return args, kwargs


class BlockHooks:
    """The hooks of an image encoder that transformers runs block by block.

    Args:
        model: a listed encoder (see `modeling/encoders.py`), with or without adapters.
        layers: the blocks, counted from 0, whose outputs `run` returns.
    """

    def __init__(self, model: nn.Module, layers: Iterable[int]) -> None:
        self.layers = tuple(layers)
        self.outputs = BlockOutputs()
        for i, block in enumerate(encoder_blocks(model)):
            block.register_forward_pre_hook(_RepeatImages(i), with_kwargs=True)
            if i in self.layers:
                block.register_forward_hook(_StoreOutput(i, self.outputs))

    def run(self, model: nn.Module, image_indices: torch.Tensor | None, **inputs: Any) -> list[torch.Tensor]:
        """Run the encoder.

        Args:
            model: the encoder, or a replica of it.
            image_indices: (B,), the image of each sentence; None for one sentence per image, in the same order.
            inputs: keyword arguments of the encoder.

        Returns:
            The outputs of `layers`, then `last_hidden_state`: (B, N, C) each.
        """
        first = None
        if image_indices is not None:
            # The blocks before the first one that reads the text compute the same for all sentences on an image.
            first = next((i for i, block in enumerate(encoder_blocks(model)) if _reads_text(block)), None)
            if first is not None:
                inputs[_IMAGE_INDICES] = first, image_indices
        self.outputs.states = {}
        try:
            last = model(**inputs).last_hidden_state
            stored = self.outputs.states
        finally:
            self.outputs.states = None
        if missing := set(self.layers) - set(stored):
            raise RuntimeError(
                f"expected {type(model).__name__} to run the blocks {sorted(missing)} that it had when the model was "
                "created, got others; create the model again."
            )
        states = [stored[layer] for layer in self.layers] + [last]
        if image_indices is None:
            return states
        shared = [*(first is None or layer < first for layer in self.layers), first is None]
        return [
            state.index_select(0, image_indices.to(state.device)) if per_image else state
            for state, per_image in zip(states, shared, strict=True)
        ]


def _reads_text(block: nn.Module) -> bool:
    return any(isinstance(module, DenseAlignerLayer) for module in block.modules())
