"""Names of the files of a checkpoint folder."""

from __future__ import annotations

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ...atomic import MANIFEST
from ..configuration_detris import DetrisConfig
from ..model_card import CARD_ATTACHMENTS, CARD_FILE

# Modules that `head.safetensors` contains.
HEAD = ("neck", "decoder", "projector", "bridger")
HEAD_FILE = "head.safetensors"
ADAPTERS = {"vision": "vision_adapter", "text": "text_adapter"}
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
# Folders of encoders that were trained (`train_backbones`), as transformers saves them
BACKBONES = {"vision": "vision_backbone", "text": "text_backbone"}
BACKBONE_CONFIG_FILE, BACKBONE_FILE = "config.json", "model.safetensors"
INDEX_FILE = SAFE_WEIGHTS_INDEX_NAME  # read by transformers' Trainer
CHECKPOINT_FILES = (
    CARD_FILE,
    *CARD_ATTACHMENTS,
    "config.json",
    HEAD_FILE,
    *(f"{folder}/{name}" for folder in ADAPTERS.values() for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE)),
    *(f"{folder}/{name}" for folder in BACKBONES.values() for name in (BACKBONE_CONFIG_FILE, BACKBONE_FILE)),
    INDEX_FILE,
    MANIFEST,
)
# Written by the processor into the same folder.
PROCESSOR_FILES = (
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def weight_files(config: DetrisConfig) -> list[str]:
    """Return the names of the weights files of a checkpoint with this config."""
    adapters = [f"{name}/{ADAPTER_FILE}" for name in ADAPTERS.values() if getattr(config, name) is not None]
    backbones = [f"{name}/{BACKBONE_FILE}" for name in BACKBONES.values()] if config.train_backbones else []
    return [HEAD_FILE, *adapters, *backbones]


def absent_folders(config: DetrisConfig) -> set[str]:
    """Return the folders that a checkpoint with this config does not have, but one with another config has."""
    adapters = {name for name in ADAPTERS.values() if getattr(config, name) is None}
    return adapters if config.train_backbones else adapters | set(BACKBONES.values())
