"""Configuration of the Bridger: ETRIS (https://arxiv.org/abs/2307.11545)."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from peft import PeftConfig
from transformers import PreTrainedConfig

from ..adapters.config import check_size
from ..field_types import describe_type, has_type
from .config_limits import MAX_HEAD_WIDTH
from .encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from .layers import scale_layers

_DEFAULT_BLOCKS = (3, 7, 11)


@dataclass
class BridgerConfig:
    """Configuration of a `detris_peft.modeling.bridger.Bridger`, which connects two frozen encoders.

    Stage `i` runs after block `vision_after_blocks[i]` of the image encoder and block `text_after_blocks[i]` of the
    text encoder.

    Args:
        dim: width d of the Bridger, a multiple of `num_heads`.
        vision_after_blocks: blocks of the image encoder, counted from 0, in increasing order.
        text_after_blocks: blocks of the text encoder, counted from 0, in increasing order; as many as for the image.
        num_heads: number of attention heads.

    Raises:
        ValueError: a field is invalid; the message names it and says what is expected.
    """

    dim: int = 128
    vision_after_blocks: list[int] = field(default_factory=lambda: list(_DEFAULT_BLOCKS))
    text_after_blocks: list[int] = field(default_factory=lambda: list(_DEFAULT_BLOCKS))
    num_heads: int = 8

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, (tuple, range)):
                setattr(self, name, value := list(value))
            if not has_type(value, types[name]):
                raise ValueError(f"{name}={value!r:.80}: expected {describe_type(types[name])}; correct it.")
        for name in ("dim", "num_heads"):
            check_size(name, getattr(self, name), MAX_HEAD_WIDTH)
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim}: expected a multiple of num_heads={self.num_heads}; change one of them.")
        for name in ("vision_after_blocks", "text_after_blocks"):
            blocks = getattr(self, name)
            if not blocks or blocks[0] < 0 or any(i >= j for i, j in itertools.pairwise(blocks)):
                raise ValueError(
                    f"{name}={blocks!r:.80}: expected at least one block, counted from 0, in increasing order; "
                    "correct it, or set bridger=None for a model without a Bridger."
                )
        if len(self.vision_after_blocks) != len(self.text_after_blocks):
            raise ValueError(
                f"text_after_blocks={self.text_after_blocks!r:.80}: expected as many blocks as in vision_after_blocks="
                f"{self.vision_after_blocks!r:.80}, got {len(self.text_after_blocks)} and "
                f"{len(self.vision_after_blocks)}; name one pair of blocks per stage."
            )

    @classmethod
    def from_value(cls, value: Any, where: str = "bridger") -> BridgerConfig | None:
        """Return a config from the value of a field: a config, a dict of its fields, or None.

        Raises:
            ValueError: the value is something else, or a field is unknown or invalid; the message starts with `where`.
        """
        if value is None:
            return None
        if isinstance(value, cls):
            value = value.to_dict()  # checked again: fields may have been changed
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a BridgerConfig, a dict of its fields or None, got {value!r:.80}.")
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                nearest = difflib.get_close_matches(str(name), known, n=1)
                fix = f"use {nearest[0]}" if nearest else "remove it"
                raise ValueError(
                    f"{where}.{name}: expected a field of BridgerConfig ({', '.join(known)}), got an unknown name; "
                    f"{fix}."
                )
        try:
            return cls(**value)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def scaled_to(
        self, vision_depth: int, own_vision_depth: int, text_depth: int, own_text_depth: int
    ) -> BridgerConfig:
        """Return a copy for encoders of other depths, with the blocks at the same relative depth.

        Stages that would be after the same block of an encoder become one.

        Args:
            vision_depth: number of blocks of the other image encoder.
            own_vision_depth: number of blocks that `vision_after_blocks` refers to.
            text_depth: number of blocks of the other text encoder.
            own_text_depth: number of blocks that `text_after_blocks` refers to.
        """
        pairs: list[tuple[int, int]] = []
        for vision, text in zip(self.vision_after_blocks, self.text_after_blocks, strict=True):
            (vision,) = scale_layers([vision], vision_depth, own_vision_depth)
            (text,) = scale_layers([text], text_depth, own_text_depth)
            if pairs and (vision <= pairs[-1][0] or text <= pairs[-1][1]):
                pairs.pop()  # the later one stays: the last stage is after the last blocks
            pairs.append((vision, text))
        return replace(
            self, vision_after_blocks=[vision for vision, _ in pairs], text_after_blocks=[text for _, text in pairs]
        )

    def check(
        self,
        vision_config: PreTrainedConfig,
        text_config: PreTrainedConfig,
        vision_adapter: PeftConfig | None = None,
    ) -> None:
        """Raise a ValueError if the Bridger does not fit the encoders, or an adapter cannot be combined with it.

        Args:
            vision_config: config of the image encoder.
            text_config: config of the text encoder.
            vision_adapter: config of the image encoder's adapter.
        """
        BridgerConfig.from_value(self)
        encoders = (
            ("vision_after_blocks", "image", vision_config, IMAGE_ENCODERS),
            ("text_after_blocks", "text", text_config, TEXT_ENCODERS),
        )
        for name, kind, config, known in encoders:
            if config.model_type not in known:
                raise ValueError(
                    f"bridger: expected an encoder whose blocks it can run ({', '.join(known)}), got "
                    f"{config.model_type!r}; set bridger=None, or add a row to modeling/encoders.py."
                )
            blocks, depth = getattr(self, name), config.num_hidden_layers
            if blocks[-1] >= depth:
                raise ValueError(
                    f"bridger.{name}={blocks!r:.80}: expected blocks of the {kind} encoder, 0 to {depth - 1}; correct "
                    "it."
                )
        if getattr(vision_adapter, "takes_text_states", False):
            raise ValueError(
                "bridger: expected an image adapter that does not read the text encoder's last hidden states, got a "
                f"{type(vision_adapter).__name__}; with a Bridger both encoders run at the same time, so use another "
                "vision_adapter, or None."
            )
