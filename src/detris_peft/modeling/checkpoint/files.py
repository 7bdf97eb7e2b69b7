"""Names of the files of a checkpoint folder."""

from __future__ import annotations

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ...atomic import MANIFEST
from ..configuration_detris import DetrisConfig
from ..model_card import CARD_FILE

HEAD = ("neck", "decoder", "projector")
HEAD_FILE = "head.safetensors"
ADAPTERS = {"vision": "vision_adapter", "text": "text_adapter"}
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
INDEX_FILE = SAFE_WEIGHTS_INDEX_NAME  # read by transformers' Trainer
CHECKPOINT_FILES = (
    CARD_FILE,
    "config.json",
    HEAD_FILE,
    *(f"{folder}/{name}" for folder in ADAPTERS.values() for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE)),
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
    return [HEAD_FILE, *(f"{name}/{ADAPTER_FILE}" for name in ADAPTERS.values() if getattr(config, name) is not None)]
