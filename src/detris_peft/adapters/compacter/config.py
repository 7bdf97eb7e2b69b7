"""Configuration of Compacter."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MAX_DIM, SequentialAdapterConfig, check_size


@dataclass
class CompacterConfig(SequentialAdapterConfig):
    """Configuration of Compacter: bottleneck adapters whose projections are sums of Kronecker products.

    Compacter (https://arxiv.org/abs/2106.04647): W = Σ A_i ⊗ (s_i t_i), i = 1…n. The matrices A_i (n × n) are shared
    by both projections of all adapters of an encoder; the factors s_i and t_i, of rank k, belong to one projection.
    Fields that are not listed here are those of [`SequentialAdapterConfig`].

    Args:
        dim: bottleneck width D, a multiple of `phm_dim`.
        phm_dim: number n of Kronecker products. It must divide `dim` and the width of the encoder.
        phm_rank: rank k of the factors; a rank above `dim / phm_dim` adds parameters, but not more possible
            projections.
        init_weights: `"paper"`: the A_i start near zero, and so does the output of the adapter; or `"identity"`: the
            factors t_i of the up-projection start at zero, so that the adapted backbone equals the plain one.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.

    Example:
        >>> vision = get_peft_model(Dinov2Model.from_pretrained("facebook/dinov2-base"), CompacterConfig())
        >>> vision(pixel_values)
    """

    dim: int = 48
    after_attention: bool = True
    phm_dim: int = 4
    phm_rank: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("phm_rank", self.phm_rank, MAX_DIM)
        if self.phm_dim < 1 or self.dim % self.phm_dim:
            raise ValueError(f"phm_dim={self.phm_dim}: expected a divisor of dim={self.dim}; change one of them.")
