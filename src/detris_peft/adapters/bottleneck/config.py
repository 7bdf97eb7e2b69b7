"""Configuration of the bottleneck adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import SequentialAdapterConfig


@dataclass
class BottleneckAdapterConfig(SequentialAdapterConfig):
    """Configuration of bottleneck adapters: y = x + up(act(down(x))) on the output x of an MLP.

    `down` and `up` are linear layers with bias, C → D and D → C.

    Houlsby et al. (https://arxiv.org/abs/1902.00751), section 2.1, have two adapters per block, after the attention
    and after the MLP (`after_attention=True`). The default is only the one after the MLP. Fields that are not listed
    here are those of [`SequentialAdapterConfig`].

    Args:
        dim: bottleneck width D.
        init_weights: `"identity"`: the up-projection starts at zero; or `"paper"`: both projections start near zero,
            from the same normal distribution.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.

    Example:
        >>> vision = get_peft_model(Dinov2Model.from_pretrained("facebook/dinov2-base"), BottleneckAdapterConfig())
        >>> vision(pixel_values)
    """

    init_weights: str = "identity"
