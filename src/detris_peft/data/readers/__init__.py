"""Dataset readers, one module per format, and their registry.

To add a format: write a module with a `DatasetReader`, and register it below.
"""

from .coco import CocoReader
from .folder import FolderReader
from .grefcoco import GrefCocoReader
from .hub import HubReader
from .mixed import MixedReader
from .refer import ReferReader
from .registry import (
    DatasetReader,
    Source,
    candidate_paths,
    dataset_path,
    find_reader,
    register_reader,
    registered_readers,
    unregister_reader,
)

# Order matters: the first reader that detects a dataset reads it.
register_reader(MixedReader())
register_reader(CocoReader())
register_reader(GrefCocoReader())
register_reader(ReferReader())
register_reader(FolderReader())
register_reader(HubReader())

__all__ = [
    "DatasetReader",
    "Source",
    "candidate_paths",
    "dataset_path",
    "find_reader",
    "register_reader",
    "registered_readers",
    "unregister_reader",
]
