"""Adapter-only checkpoints: adapters and head; the frozen backbones are referenced by name.

A checkpoint folder contains `config.json`, `vision_adapter/` and `text_adapter/` (each a peft folder),
`head.safetensors`, a model card, and `manifest.json` with the checksums of these files. The card may come with an
image, and with results for leaderboards of the Hub. The folder never contains frozen weights. With `train_backbones`,
it contains the trained encoders instead of adapters: `vision_backbone/` and `text_backbone/`, each as transformers
saves it.
"""

from .files import ADAPTER_FILE, ADAPTERS, CHECKPOINT_FILES, HEAD, HEAD_FILE, PROCESSOR_FILES, absent_folders
from .loading import check_complete, find_folder, load_checkpoint, read_config
from .saving import save_checkpoint
from .weights import trainable_state_dict

__all__ = [
    "ADAPTERS",
    "ADAPTER_FILE",
    "CHECKPOINT_FILES",
    "HEAD",
    "HEAD_FILE",
    "PROCESSOR_FILES",
    "absent_folders",
    "check_complete",
    "find_folder",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
    "trainable_state_dict",
]
