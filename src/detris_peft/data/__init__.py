"""Datasets of images, referring expressions and masks, all with the same columns (`FEATURES`)."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .collator import Collator
    from .errors import BAD_KINDS, BadRowError, BadRows, MissingImageError
    from .masks import decode_mask, encode_mask
    from .readers import DatasetReader, register_reader, unregister_reader
    from .readers.coco import load_coco
    from .readers.column_mapping import ColumnMapping
    from .readers.folder import load_folder
    from .readers.grefcoco import load_grefer
    from .readers.hub import load_mapped
    from .readers.mixed import load_mixed
    from .readers.refer import PUBLISHED_REFERENCES, load_refer
    from .samples import EvaluationSamples, Sample, StreamedSamples, TrainingSamples, iterate_batches
    from .schema import FEATURES, decode_row, make_row, open_image, to_dataset
    from .sources import DataSource
    from .tools.check import check_data
    from .tools.convert import write_parquet
    from .tools.describe import describe_dataset
    from .tools.split import split_dataset
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "collator": ("Collator",),
            "errors": (
                "BAD_KINDS",
                "BadRowError",
                "BadRows",
                "MissingImageError",
            ),
            "masks": (
                "decode_mask",
                "encode_mask",
            ),
            "readers": (
                "DatasetReader",
                "register_reader",
                "unregister_reader",
            ),
            "readers.coco": ("load_coco",),
            "readers.column_mapping": ("ColumnMapping",),
            "readers.folder": ("load_folder",),
            "readers.grefcoco": ("load_grefer",),
            "readers.hub": ("load_mapped",),
            "readers.mixed": ("load_mixed",),
            "readers.refer": (
                "PUBLISHED_REFERENCES",
                "load_refer",
            ),
            "samples": (
                "EvaluationSamples",
                "Sample",
                "StreamedSamples",
                "TrainingSamples",
                "iterate_batches",
            ),
            "schema": (
                "FEATURES",
                "decode_row",
                "make_row",
                "open_image",
                "to_dataset",
            ),
            "sources": ("DataSource",),
            "tools.check": ("check_data",),
            "tools.convert": ("write_parquet",),
            "tools.describe": ("describe_dataset",),
            "tools.split": ("split_dataset",),
        },
    )

__all__ = [
    "BAD_KINDS",
    "FEATURES",
    "PUBLISHED_REFERENCES",
    "BadRowError",
    "BadRows",
    "Collator",
    "ColumnMapping",
    "DataSource",
    "DatasetReader",
    "EvaluationSamples",
    "MissingImageError",
    "Sample",
    "StreamedSamples",
    "TrainingSamples",
    "check_data",
    "decode_mask",
    "decode_row",
    "describe_dataset",
    "encode_mask",
    "iterate_batches",
    "load_coco",
    "load_folder",
    "load_grefer",
    "load_mapped",
    "load_mixed",
    "load_refer",
    "make_row",
    "open_image",
    "register_reader",
    "split_dataset",
    "to_dataset",
    "unregister_reader",
    "write_parquet",
]
