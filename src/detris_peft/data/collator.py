"""Collate samples into batches of model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from .samples import Sample


@dataclass
class Collator:
    """Collates samples into a batch: the processor's tensors, and the original masks for scoring.

    Args:
        processor: a `DetrisProcessor`, or a callable with the same arguments.
        keep_masks: include `masks`. Training does not need them, and without them workers transfer less data.
        model_inputs_only: return only the arguments of the model's forward, as `transformers.Trainer` expects.
        as_bytes: return `pixel_bytes` and `label_bytes` of uint8 instead of `pixel_values` and `labels`, so that
            workers transfer a quarter of the data. The main process calls `processor.normalize_bytes` on the batch.

    Raises:
        ValueError: both `model_inputs_only` and `as_bytes` are set.
    """

    processor: Any
    keep_masks: bool = True
    model_inputs_only: bool = False
    as_bytes: bool = False

    def __post_init__(self) -> None:
        if self.model_inputs_only and self.as_bytes:
            raise ValueError("as_bytes: expected False with model_inputs_only, as the model reads floats; set one")
        # DataLoader workers already parallelize. Set before forking: OpenCV can deadlock in forked workers.
        cv2.setNumThreads(1)

    def canvas_size(self, sample: Sample) -> tuple[int, int]:
        """Return the (h, w) of the sample's `pixel_values` if it is not batched with others.

        Samples are only comparable across batch sizes if each is batched with samples of its own canvas.
        """
        return self.processor.canvas_size([sample.mask.shape])

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Collate samples into a batch.

        Returns:
            `pixel_values`, `input_ids`, `labels` and `target_sizes` from the processor; `masks`, one (H, W) array per
            sample; `ref_ids` and `sentences`; `bad_rows`, the (kind, message) of each skipped row.
        """
        masks = [sample.mask for sample in samples]
        inputs = self.processor(
            images=[sample.image for sample in samples],
            text=[sample.sentence for sample in samples],
            masks=masks,
            original_sizes=[mask.shape for mask in masks],
            return_tensors="pt",
            **({"as_bytes": True} if self.as_bytes else {}),
        )
        if self.model_inputs_only:
            return dict(inputs)
        return {
            **inputs,
            **({"masks": masks} if self.keep_masks else {}),
            "ref_ids": [sample.ref_id for sample in samples],
            "bad_rows": [(error.kind, str(error)) for sample in samples for error in sample.skipped],
            "sentences": [sample.sentence for sample in samples],
        }
