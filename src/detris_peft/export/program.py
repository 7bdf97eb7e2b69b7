"""Tracing of a model with torch.export, and the comparison of what is exported with the model itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ..errors import is_out_of_memory, one_line
from ..eval_mode import eval_mode
from ..modeling import DetrisForReferringSegmentation
from ..processing_detris import DetrisProcessor
from .positions import folded_position_table

Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # pixel_values and input_ids → logits

# Of different lengths, so that the samples of the batch have different end tokens and padding.
_SENTENCES = ["square", "the small square on the left of the large circle, next to the top", "a red circle at the top"]
_BATCHES = (slice(0, 3), slice(1, 2))  # of these samples


@dataclass
class Sample:
    """Inputs and the model's outputs on them, to compare an exported program with.

    Attributes:
        pixel_values: (3, 3, s, s).
        input_ids: (3, L).
        logits: (3, 1, 4h, 4w).
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    logits: torch.Tensor


class LogitsModel(nn.Module):
    """A model that returns its logits only, as a plain tensor."""

    def __init__(self, model: DetrisForReferringSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, s, s) and tokens (B, L) → logits (B, 1, 4h, 4w)."""
        return self.model(pixel_values, input_ids).logits


def trace(
    model: DetrisForReferringSegmentation, processor: DetrisProcessor, image_size: int
) -> tuple[ExportedProgram, Sample]:
    """Trace a model for batches of any size, and images and sentences of fixed sizes. The model does not change.

    Args:
        model: the model, float32 on the CPU; other threads must not use it meanwhile.
        processor: its processor.
        image_size: s, side of the images in pixels.

    Returns:
        The program, and inputs with the model's outputs.

    Raises:
        ValueError: torch.export cannot trace the model.
    """
    pixel_values = torch.randn(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    input_ids = processor(text=_SENTENCES)["input_ids"]
    batch = Dim("batch", min=1)
    with torch.no_grad(), eval_mode(model), quiet():
        expected: Any = model(pixel_values, input_ids).logits

        def encode() -> None:
            model(pixel_values[:1], input_ids[:1])

        with folded_position_table(model.vision_model, encode):
            try:
                program = torch.export.export(
                    LogitsModel(model),
                    (pixel_values, input_ids),
                    dynamic_shapes={"pixel_values": {0: batch}, "input_ids": {0: batch}},
                    # Hooks of the adapters, and the state they share with layers, are run by Python while tracing.
                    strict=False,
                )
            except Exception as error:  # any: torch.export runs the model's code on placeholders
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"model: expected one that torch.export can trace, got an error ({one_line(error, True):.300}); "
                    "check its encoders and adapters, or predict with PyTorch."
                ) from error
    _remove_stack_traces(program)
    return program, Sample(pixel_values, input_ids, expected)


def largest_difference(run: Run, sample: Sample) -> float:
    """Return the largest absolute difference from the model's logits, in batches of three and of one.

    It is relative to the largest absolute logit where that is above 1. NaN counts as infinity.
    """
    largest = 0.0
    scale = max(1.0, sample.logits.abs().max().item())
    for rows in _BATCHES:
        got, expected = run(sample.pixel_values[rows], sample.input_ids[rows]), sample.logits[rows]
        difference = (got - expected).abs().max().item() if got.shape == expected.shape else float("inf")
        largest = max(largest, difference / scale) if difference == difference else float("inf")
    return largest


def _remove_stack_traces(program: ExportedProgram) -> None:
    """Remove the lines of source code that nodes come from: their paths are those of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of PyTorch's exporters, which are about their own code."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
