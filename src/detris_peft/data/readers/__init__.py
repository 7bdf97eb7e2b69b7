"""Dataset readers, one module per format, and their registry.

To add a format: write a module with a `DatasetReader`, and register it below.
"""

from .coco import CocoReader
from .coco_folder import CocoFolderReader
from .folder import FolderReader
from .grefcoco import GrefCocoReader
from .hub import HubReader
from .labels.cvat import CvatReader
from .labels.label_studio import LabelStudioReader
from .labels.labelme import LabelMeReader
from .labels.pascal_voc import PascalVocReader
from .labels.phrasecut import PhraseCutReader
from .labels.reasonseg import ReasonSegReader
from .labels.ref_youtube_vos import RefYouTubeVosReader
from .labels.via import ViaReader
from .labels.yolo import YoloReader
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
from .table import TableReader

# Order matters: the first reader that detects a dataset reads it.
register_reader(MixedReader())
register_reader(CvatReader())
register_reader(LabelStudioReader())
register_reader(LabelMeReader())
register_reader(PascalVocReader())
register_reader(PhraseCutReader())
register_reader(ReasonSegReader())
register_reader(RefYouTubeVosReader())
register_reader(ViaReader())
register_reader(YoloReader())
register_reader(CocoReader())
register_reader(CocoFolderReader())
register_reader(GrefCocoReader())
register_reader(ReferReader())
register_reader(FolderReader())
register_reader(TableReader())
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
