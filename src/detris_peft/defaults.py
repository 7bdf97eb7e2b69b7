"""Default values shared by the model, the processor, the dataset readers and the command line."""

from __future__ import annotations

IMAGE_SIZE = 448  # side of the model's input in pixels
MAX_IMAGE_SIZE = 8192  # largest side of the input in pixels that a config, a processor or an export accepts
MAX_TEXT_LENGTH = 17  # tokens per expression, start and end token included
IMAGE_FOLDER = "images/train2014"  # of the RefCOCO family, below the data root
MASK_THRESHOLD = 0.35  # tuned by the authors on RefCOCO's val split, hence not 0.5

# CLIP's image statistics, used for DINOv2 as well: the released weights were trained with them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
