"""Configuration of the text adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import ParallelAdapterConfig


@dataclass
class TextAdapterConfig(ParallelAdapterConfig):
    """Configuration of text adapters, parallel to the MLPs of a text encoder: D-MoC along the sentence.

    DETRIS (https://arxiv.org/abs/2501.08580), section 3.3, equation 4; the defaults are those of DETRIS-B. The fields
    are those of [`ParallelAdapterConfig`].

    Args:
        dim: bottleneck width D, a multiple of 16.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.

    Example:
        >>> text = get_peft_model(CLIPTextModel.from_pretrained("openai/clip-vit-base-patch16"), TextAdapterConfig())
    """

    encoder_kind: ClassVar[str | None] = "text"

    dim: int = 64
