"""Upper bounds of the sizes in a config, which may come from an untrusted file.

They are far above those of any real model. Without them, a config of a few bytes could take gigabytes or minutes.
"""

from __future__ import annotations

from typing import Any

from ..defaults import MAX_IMAGE_SIZE

MAX_LAYERS = 1_000
MAX_WIDTH = 65_536
MAX_HEAD_WIDTH = 16_384
MAX_VOCABULARY = 4_000_000
MAX_TOKENS = 65_536

_LIMITS = {
    "num_hidden_layers": MAX_LAYERS,
    "decoder_layers": MAX_LAYERS,
    "hidden_size": MAX_WIDTH,
    "projection_dim": MAX_WIDTH,
    "projection_size": MAX_WIDTH,
    "intermediate_size": 4 * MAX_WIDTH,
    "num_attention_heads": MAX_WIDTH,
    "vocab_size": MAX_VOCABULARY,
    "type_vocab_size": MAX_TOKENS,
    "max_position_embeddings": MAX_TOKENS,
    "num_register_tokens": MAX_TOKENS,
    "num_channels": 3,
    "patch_size": MAX_IMAGE_SIZE,
    "image_size": MAX_IMAGE_SIZE,
    "mlp_ratio": 256,
    "hidden_dim": MAX_HEAD_WIDTH,
    "neck_heads": MAX_HEAD_WIDTH,
    "decoder_heads": MAX_HEAD_WIDTH,
    "decoder_ffn_dim": MAX_HEAD_WIDTH,
    "max_text_length": MAX_TOKENS,
    "dim": MAX_HEAD_WIDTH,
    "text_dim": MAX_WIDTH,
    "cross_attention_dim": MAX_HEAD_WIDTH,
    "cross_attention_heads": MAX_HEAD_WIDTH,
    "num_labels": MAX_TOKENS,  # of a task head; transformers creates a name for each
}
_MAY_BE_ZERO = ("num_register_tokens", "decoder_layers", "type_vocab_size", "num_labels")


def check_limits(where: str, config: Any) -> None:
    """Raise a ValueError if a size of a config is not a number within its bounds.

    Args:
        where: file or field that holds the config; the message starts with it.
        config: config of a model or of an adapter.
    """
    for name, maximum in _LIMITS.items():
        value = getattr(config, name, None)
        if value is None:
            continue
        sizes = value if isinstance(value, (list, tuple)) else [value]  # a patch or an image may have two sides
        minimum = 0 if name in _MAY_BE_ZERO else 1
        for size in sizes:
            is_number = isinstance(size, int) or (isinstance(size, float) and name == "mlp_ratio")
            if not is_number or isinstance(size, bool) or not minimum <= size <= maximum:
                raise ValueError(_message(where, name, size))


def check_raw_limits(where: str, values: dict[str, Any]) -> None:
    """Raise a ValueError if a size is too large, before transformers reads the config and creates lists of that size.

    Args:
        where: file or field that holds the config; the message starts with it.
        values: the content of the config as read from JSON, with the configs of both encoders nested in it.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            check_raw_limits(where, value)
        elif name in _LIMITS and isinstance(value, (int, float)) and value > _LIMITS[name]:
            raise ValueError(_message(where, name, value))


def _message(where: str, name: str, value: Any) -> str:
    minimum = 0 if name in _MAY_BE_ZERO else 1
    return f"{where}: expected {name} from {minimum} to {_LIMITS[name]:,}, got {value!r}; correct it."
