"""Collate samples into batches of model inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from .samples import Sample


@dataclass
class Collator:
    """Samples to a batch: the processor's tensors, and for scoring the masks at their own size.

    Args:
        processor: a `DetrisProcessor`, or anything that is called like one.
        keep_masks: False leaves out `masks`, which training does not need and workers would have to send.
        model_inputs_only: give nothing but what a model's forward takes, for `transformers.Trainer`.
    """

    processor: Callable[..., Any]
    keep_masks: bool = True
    model_inputs_only: bool = False

    def __post_init__(self) -> None:
        # The loader's workers are the threads. Said before they are forked: OpenCV, asked within one, would wait for
        # ever for threads that only its parent has.
        cv2.setNumThreads(1)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`pixel_values`, `input_ids`, `labels`, `target_sizes`; `masks` (H, W) each, `ref_ids`, `sentences`;
        `bad_rows`, (kind, message) of each row that was passed over."""
        masks = [sample.mask for sample in samples]
        inputs = self.processor(
            images=[sample.image for sample in samples],
            text=[sample.sentence for sample in samples],
            masks=masks,
            original_sizes=[mask.shape for mask in masks],
            return_tensors="pt",
        )
        if self.model_inputs_only:
            return dict(inputs)
        return {
            **inputs,
            **({"masks": masks} if self.keep_masks else {}),
            "ref_ids": [sample.ref_id for sample in samples],
            "bad_rows": [(error.kind, str(error)) for sample in samples for error in sample.passed_over],
            "sentences": [sample.sentence for sample in samples],
        }
