"""Data sets of pictures, referring sentences and masks, all with the same columns (`FEATURES`)."""

from .bad_rows import BAD_KINDS, BadRowError, BadRows, MissingPictureError
from .check import check_data
from .coco_json import load_coco
from .column_mapping import ColumnMapping
from .columns import FEATURES, decode_row, open_image
from .folder import load_folder
from .grefer import load_grefer
from .mapping import load_mapped
from .masks import decode_mask, encode_mask
from .mixed import load_mixed
from .parquet import write_parquet
from .refer import PUBLISHED_REFERENCES, load_refer
from .samples import Collator, EvaluationSamples, Sample, StreamedSamples, TrainingSamples, batches
from .sources import DataSource

# The made-up data set is `detris_peft.data.shapes`; it is not imported here so that `python -m` can run it.
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
    "MissingPictureError",
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
