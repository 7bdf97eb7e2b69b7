"""What the paper compares DETRIS with (Table 2), and DETRIS without one of its adapters (Table 3).

The paper states one parameter count per method, and that ranks were chosen to match it; the authors have not released
these configurations. The ones here have the stated counts, rounded or truncated to 0.01 M. All use the backbones of
DETRIS-B.
"""

from __future__ import annotations

from functools import partial

from peft import LoraConfig

from ..adapters import BottleneckAdapterConfig, CompacterConfig
from ..modeling import DetrisConfig
from ..modeling.adapter_configs import QUERY_AND_VALUE
from ..modeling.bridger_config import BridgerConfig
from .detris import BASE

_without_adapters = partial(DetrisConfig, vision_adapter=None, text_adapter=None, **BASE)


def full_tuning() -> DetrisConfig:
    """Return the config of full tuning: all weights of both encoders except CLIP's position table, 149.97 M."""
    return _without_adapters(train_backbones=True)


def fixed_backbone() -> DetrisConfig:
    """Return the config without adapters: only the head is trained."""
    return _without_adapters()


def adapter() -> DetrisConfig:
    """Return the config of bottleneck adapters, 64 wide, after the MLP of every block: 1.98 M parameters."""
    return DetrisConfig(
        vision_adapter=BottleneckAdapterConfig(dim=64), text_adapter=BottleneckAdapterConfig(dim=64), **BASE
    )


def houlsby() -> DetrisConfig:
    """Return the config of bottleneck adapters, 32 wide, after attention and MLP of every block: 2.00 M parameters.

    These are the two places of Houlsby et al. (https://arxiv.org/abs/1902.00751), at the same cost as `adapter`.
    """
    return DetrisConfig(
        vision_adapter=BottleneckAdapterConfig(dim=32, after_attention=True),
        text_adapter=BottleneckAdapterConfig(dim=32, after_attention=True),
        **BASE,
    )


def compacter() -> DetrisConfig:
    """Return the config of Compacter, 48 wide with rank 24, which has the paper's count: 1.62 M parameters.

    Rank 24 is twice the largest useful one, which is dim / phm_dim = 12; see `compacter_112`.
    """
    return DetrisConfig(
        vision_adapter=CompacterConfig(dim=48, phm_rank=24), text_adapter=CompacterConfig(dim=48, phm_rank=24), **BASE
    )


def compacter_112() -> DetrisConfig:
    """Return the config of Compacter, 112 wide with rank 22: 1.62 M parameters, none of which are redundant."""
    return DetrisConfig(
        vision_adapter=CompacterConfig(dim=112, phm_rank=22),
        text_adapter=CompacterConfig(dim=112, phm_rank=22),
        **BASE,
    )


def lora() -> DetrisConfig:
    """Return the config of LoRA on the queries and values of every block, rank 32 and 16: 1.57 M parameters."""
    return DetrisConfig(vision_adapter=_lora(32), text_adapter=_lora(16), **BASE)


def etris() -> DetrisConfig:
    """Return the config of ETRIS's Bridger (https://arxiv.org/abs/2307.11545): 1.39 M parameters."""
    return _without_adapters(bridger=BridgerConfig())


def dense_aligner_only() -> DetrisConfig:
    """Return the config of DETRIS-B without text adapters: 2.30 M parameters."""
    return DetrisConfig(text_adapter=None, **BASE)


def text_adapter_only() -> DetrisConfig:
    """Return the config of DETRIS-B without Dense Aligners: 0.42 M parameters."""
    return DetrisConfig(vision_adapter=None, **BASE)


def _lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(QUERY_AND_VALUE))
