"""Configuration of the Dense Aligner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import MAX_DIM, MAX_TEXT_DIM, ParallelAdapterConfig, check_size


@dataclass
class DenseAlignerConfig(ParallelAdapterConfig):
    """Configuration of Dense Aligners, parallel to the MLPs of an image encoder: D-MoC, then cross-attention to text.

    DETRIS (https://arxiv.org/abs/2501.08580), section 3.3; the defaults are those of DETRIS-B. Fields that are not
    listed here are those of [`ParallelAdapterConfig`].

    Args:
        dim: bottleneck width D, a multiple of 16.
        text_dim: width T of the `text_states` passed to the image encoder.
        cross_attention_dim: width E of the cross-attention; 128 in every published model, regardless of D.
        cross_attention_heads: number of heads; must divide `cross_attention_dim`.
        cross_attention_dropout: dropout probability of the attention weights, in [0, 1).

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.

    Example:
        >>> vision = get_peft_model(Dinov2Model.from_pretrained("facebook/dinov2-base"), DenseAlignerConfig())
        >>> vision(pixel_values, text_states=text.last_hidden_state)
    """

    encoder_kind: ClassVar[str | None] = "image"
    takes_text_states: ClassVar[bool] = True  # whether the encoder is called with the text encoder's states

    dim: int = 128
    text_dim: int = 512
    cross_attention_dim: int = 128
    cross_attention_heads: int = 8
    cross_attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_dim < 1:
            raise ValueError(
                f"text_dim={self.text_dim}: expected the width of the text encoder's hidden states, at least 1."
            )
        check_size("text_dim", self.text_dim, MAX_TEXT_DIM)
        check_size("cross_attention_dim", self.cross_attention_dim, MAX_DIM)
        if self.cross_attention_heads < 1 or self.cross_attention_dim % self.cross_attention_heads:
            raise ValueError(
                f"cross_attention_heads={self.cross_attention_heads}: expected a divisor of "
                f"cross_attention_dim={self.cross_attention_dim}."
            )
        if not 0 <= self.cross_attention_dropout < 1:
            raise ValueError(f"cross_attention_dropout={self.cross_attention_dropout}: expected a value in [0, 1).")
