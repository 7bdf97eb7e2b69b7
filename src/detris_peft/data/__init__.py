"""Data sets of pictures, referring sentences and masks, all with the same columns (`FEATURES`)."""

from .columns import FEATURES, decode_row, open_image
from .masks import decode_mask, encode_mask
from .refer import load_refer
from .samples import Collator, EvaluationSamples, Sample, TrainingSamples, batches

# The made-up data set is `detris_peft.data.shapes`; it is not imported here so that `python -m` can run it.
__all__ = [
    "FEATURES",
    "Collator",
    "EvaluationSamples",
    "Sample",
    "TrainingSamples",
    "batches",
    "decode_mask",
    "decode_row",
    "encode_mask",
    "load_refer",
    "open_image",
]
