"""Run an encoder of transformers block by block, so that something can happen between the blocks."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..adapters.block_layouts import BLOCK_LIST
from .encoders import final_norm

# A setting of the thread, since threads may share an encoder, and replicas of `nn.DataParallel` share its hooks.
_stops_at_first_block: ContextVar[bool] = ContextVar("stops_at_first_block", default=False)


class _FirstBlockReached(Exception):  # noqa: N818  not an error
    """Carries what an encoder passes to its first block."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.block_args, self.block_kwargs = args, kwargs


def _stop(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the first block. It does nothing except in the constructor of `EncoderRun`."""
    if _stops_at_first_block.get():
        raise _FirstBlockReached(args, kwargs)


def enable_encoder_runs(model: nn.Module) -> None:
    """Prepare an encoder, with or without adapters, for `EncoderRun`: add an inactive hook to its first block."""
    first_block = encoder_blocks(model)[0]
    if _stop not in first_block._forward_pre_hooks.values():
        first_block.register_forward_pre_hook(_stop, prepend=True, with_kwargs=True)


class EncoderRun:
    """One forward pass of an encoder, block by block.

    The encoder's own forward computes what is before the blocks: embeddings, attention masks and rotary positions. It
    is stopped at the first block, and all blocks are then called with the arguments of that one. This is what the
    listed encoders do themselves (see `modeling/encoders.py`).

    Args:
        model: the encoder, with or without adapters; prepared by `enable_encoder_runs`.
        inputs: keyword arguments of the encoder.

    Attributes:
        states: list of (B, N, C): the embedding, then the output of each block that has run.
    """

    def __init__(self, model: Any, **inputs: Any) -> None:
        (embedding, *self._args), self._kwargs = _first_call(model, inputs)
        self.states: list[torch.Tensor] = [embedding]
        self._blocks = encoder_blocks(model)
        norm = final_norm(model.config)
        self._norm = None if norm is None else _submodule(model, norm)

    def run_through(self, last_block: int) -> torch.Tensor:
        """Run the blocks up to and including `last_block`, counted from 0; return the output of the last one."""
        for block in self._blocks[len(self.states) - 1 : last_block + 1]:
            output = block(self.states[-1], *self._args, **self._kwargs)
            self.states.append(output[0] if isinstance(output, tuple) else output)
        return self.states[-1]

    def replace(self, state: torch.Tensor) -> None:
        """Replace the output of the last block that has run; dtype and device stay those of the encoder."""
        self.states[-1] = state.to(self.states[-1])

    def finish(self) -> BaseModelOutput:
        """Run the remaining blocks and the final norm; return the outputs as the encoder does."""
        state = self.run_through(len(self._blocks) - 1)
        last_hidden_state: Any = state if self._norm is None else self._norm(state)
        return BaseModelOutput(last_hidden_state=last_hidden_state, hidden_states=tuple(self.states))


def _first_call(model: Any, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the positional and keyword arguments with which an encoder calls its first block."""
    if torch.compiler.is_exporting():
        return _first_call_without_exception(model, inputs)
    token = _stops_at_first_block.set(True)
    try:
        model(**inputs)
    except _FirstBlockReached as reached:
        return reached.block_args, reached.block_kwargs
    finally:
        _stops_at_first_block.reset(token)
    raise RuntimeError(
        f"expected {type(model).__name__} to run the blocks that it had when the model was created, got others; "
        "create the model again."
    )


def _first_call_without_exception(model: Any, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return what `_first_call` returns, for torch.export, whose stack of modules an exception would corrupt.

    All blocks return their input, so what the encoder computes after them is unused; torch.export removes it.
    """
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def record(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(((hidden_states, *args), kwargs))
        return hidden_states

    blocks = [*encoder_blocks(model)]
    own = [block.__dict__.get("forward") for block in blocks]  # set by hooks of accelerate
    try:
        for block in blocks:
            block.forward = record
        model(**inputs)
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
    return calls[0]


def encoder_blocks(model: nn.Module) -> Any:
    """Return the list of the blocks of an encoder, with or without adapters."""
    return _submodule(model, BLOCK_LIST)


def _submodule(model: Any, name: str) -> nn.Module:
    """Return the outermost submodule of an encoder with a name, given as a regular expression."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return next(module for key, module in plain.named_modules() if re.fullmatch(name, key.rpartition(".")[2]))
