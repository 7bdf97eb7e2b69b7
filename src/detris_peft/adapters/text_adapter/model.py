"""The text adapter tuner."""

from __future__ import annotations

from ..block_layouts import TEXT_BLOCKS
from ..parallel import ParallelAdapterModel
from .config import TextAdapterConfig
from .layer import TextAdapterLayer


class TextAdapterModel(ParallelAdapterModel):
    """A text encoder with text adapters. It is called like the plain encoder."""

    prefix = "text_adapter_"
    tuner_layer_cls = TextAdapterLayer
    config_cls = TextAdapterConfig
    layouts = TEXT_BLOCKS
    second_input = "the residual stream (the input of the norm before the MLP)"
