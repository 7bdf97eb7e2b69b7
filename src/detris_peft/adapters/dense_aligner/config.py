"""Configuration of the Dense Aligner."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftType

from ..config import ParallelAdapterConfig


@dataclass
class DenseAlignerConfig(ParallelAdapterConfig):
    """Dense Aligners beside the MLPs of an image encoder: D-MoC, then cross-attention to a sentence.

    DETRIS (https://arxiv.org/abs/2501.08580), section 3.3; the defaults are DETRIS-B's. The fields not listed here
    are those of [`ParallelAdapterConfig`](../config.py).

    Args:
        dim: bottleneck width D, a multiple of 16.
        text_dim: width T of the `text_states` that the image encoder is called with.
        cross_attention_dim: width E of the cross-attention; 128 in every published model, whatever D is.
        cross_attention_heads: its heads; must divide `cross_attention_dim`.
        cross_attention_dropout: dropout of its attention weights while training, in [0, 1).

    Raises:
        ValueError: a field does not fit; the message names it and says what would.

    Example:
        >>> vision = get_peft_model(Dinov2Model.from_pretrained("facebook/dinov2-base"), DenseAlignerConfig())
        >>> vision(pixel_values, text_states=text.last_hidden_state)
    """

    dim: int = 128
    text_dim: int = 512
    cross_attention_dim: int = 128
    cross_attention_heads: int = 8
    cross_attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["DENSE_ALIGNER"]
        if self.text_dim < 1:
            raise ValueError(f"text_dim={self.text_dim} must be the width of the text encoder's hidden states.")
        if self.cross_attention_heads < 1 or self.cross_attention_dim % self.cross_attention_heads:
            raise ValueError(
                f"cross_attention_heads={self.cross_attention_heads} must divide "
                f"cross_attention_dim={self.cross_attention_dim}."
            )
        if not 0 <= self.cross_attention_dropout < 1:
            raise ValueError(f"cross_attention_dropout={self.cross_attention_dropout} must be at least 0 and below 1.")
