"""Datasets of images, referring sentences and masks, all with the same columns (`FEATURES`)."""

from .collator import Collator
from .errors import BAD_KINDS, BadRowError, BadRows, MissingImageError
from .masks import decode_mask, encode_mask
from .readers.coco import load_coco
from .readers.column_mapping import ColumnMapping
from .readers.folder import load_folder
from .readers.grefcoco import load_grefer
from .readers.hub import load_mapped
from .readers.mixed import load_mixed
from .readers.refer import PUBLISHED_REFERENCES, load_refer
from .samples import EvaluationSamples, Sample, StreamedSamples, TrainingSamples, batches
from .schema import FEATURES, decode_row, open_image
from .sources import DataSource
from .tools.check import check_data
from .tools.convert import write_parquet

# `detris_peft.data.refshapes` is not imported here, so that `python -m` can run it.
__all__ = [
    "BAD_KINDS",
    "FEATURES",
    "PUBLISHED_REFERENCES",
    "BadRowError",
    "BadRows",
    "Collator",
    "ColumnMapping",
    "DataSource",
    "EvaluationSamples",
    "MissingImageError",
    "Sample",
    "StreamedSamples",
    "TrainingSamples",
    "batches",
    "check_data",
    "decode_mask",
    "decode_row",
    "encode_mask",
    "load_coco",
    "load_folder",
    "load_grefer",
    "load_mapped",
    "load_mixed",
    "load_refer",
    "open_image",
    "write_parquet",
]
