"""Read the configs of pretrained backbones, and load their weights strictly.

transformers initializes missing weights randomly and only warns. A frozen backbone must be loaded completely.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from ..errors import one_line
from ..safe_loading import read_json
from .backbone_folders import recover_backbone
from .config_limits import check_limits, check_raw_limits
from .encoders import architecture

_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
# A field that only the encoders of a kind have.
_REQUIRED_FIELD = {"vision": "patch_size", "text": "vocab_size"}


def read_backbone_config(kind: str, name: str, fix: str, **keywords: Any) -> PreTrainedConfig:
    """Read the config of a pretrained backbone. That of a model with both encoders (CLIP) is reduced to the one.

    Args:
        kind: `"vision"` or `"text"`.
        name: folder or Hub id.
        fix: how the user can name another backbone; completes the error messages.
        keywords: keyword arguments of `from_pretrained`; those that locate the files are used.

    Raises:
        OSError: the config cannot be read.
        ValueError: it belongs to another kind of model, or a size is out of bounds.
    """
    located = {key: value for key, value in keywords.items() if key in _HUB_KEYWORDS}
    recover_backbone(name)
    if os.path.isdir(name):
        _check_local(kind, Path(name) / located.get("subfolder", ""), fix)
    elif os.path.isabs(name) or name.startswith(".") or os.path.exists(name):
        raise FileNotFoundError(f"{name}: expected the folder of the {kind} backbone, found no such folder; {fix}.")
    with _as_one_line(kind, name, fix):
        values, _ = PreTrainedConfig.get_config_dict(name, **located)
    check_raw_limits(f"{name}/config.json", values)
    with _as_one_line(kind, name, fix):
        container = AutoConfig.from_pretrained(name, trust_remote_code=False, **located)
    config = getattr(container, f"{kind}_config", None) or container
    # The field must be declared: transformers also stores fields that it does not know.
    if not isinstance(config, PreTrainedConfig) or _REQUIRED_FIELD[kind] not in type(config)().to_dict():
        expected = "image" if kind == "vision" else "text"
        raise ValueError(f"{name}: expected an {expected} encoder, got a model of type {container.model_type}; {fix}.")
    if config is not container and hasattr(container, "projection_dim"):
        config.projection_dim = container.projection_dim  # CLIP's own projection has this width
    check_limits(f"{name}/config.json", config)
    config.architectures = [architecture(config)]
    return config


def load_pretrained_backbone(
    kind: str, name: str, fix: str, architecture: str | None = None, **keywords: Any
) -> PreTrainedModel:
    """Load a plain encoder with its pretrained weights.

    Args:
        kind: `"vision"` or `"text"`.
        name: folder or Hub id.
        fix: how the user can name another backbone; completes the error messages.
        architecture: name of the model class; default: the one of the backbone's own config.
        keywords: keyword arguments of `from_pretrained`.

    Raises:
        OSError: the files cannot be read.
        ValueError: a weight is missing, unexpected or of another shape, or the model is of another kind.
    """
    config = read_backbone_config(kind, name, fix, **keywords)
    cls: Any = getattr(transformers, architecture or (config.architectures or [""])[0])
    if not isinstance(config, cls.config_class):
        raise ValueError(f"{name}: expected a {cls.__name__}, got a model of type {config.model_type}; {fix}.")
    with _as_one_line(kind, name, fix):
        model, info = cls.from_pretrained(
            name, config=config, output_loading_info=True, trust_remote_code=False, **keywords
        )
    missing = sorted(key for key in info["missing_keys"] if not _is_unused(key))
    unexpected = sorted(key for key in info["unexpected_keys"] if _belongs_to(model, key) and not _is_unused(key))
    for keys, problem in ((missing, "is missing"), (unexpected, "has unexpected weights:")):
        if keys:
            count = f" {len(keys)} weights, such as" if keys is missing else ""
            raise ValueError(
                f"The {kind} backbone {name} {problem}{count} {_shown(keys)}; its config.json and its weights do not "
                f"belong together; {fix}."
            )
    return model


def _check_local(kind: str, folder: Path, fix: str) -> None:
    """Raise an error if a folder has no readable config. transformers would guess the type from the folder's name."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: expected a {kind} encoder, got a folder without config.json; {fix}.")
    content = read_json(file)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"{file}: expected a model_type of transformers, got {model_type!r}; {fix}.")


@contextmanager
def _as_one_line(kind: str, name: str, fix: str) -> Iterator[None]:
    """Turn the errors of a damaged or missing backbone into one line, and silence transformers' report of keys."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except (*_ERRORS, pickle.UnpicklingError) as error:
        reason = one_line(error, first_line=True).rstrip(".")
        if "ignore_mismatched_sizes" in reason:
            reason = "the shapes of its weights differ from those in its config.json"
        raise OSError(f"The {kind} backbone {name} cannot be loaded ({reason}); {fix}.") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _is_unused(key: str) -> bool:
    """Return whether DETRIS does not use a weight: poolers, mask tokens, and tables of indices that old files have."""
    return "pooler" in key or key.endswith(("position_ids", "mask_token"))


def _belongs_to(model: PreTrainedModel, key: str) -> bool:
    """Return whether a key in a weights file is one of the encoder, not of a task head or of another encoder."""
    own = {name for name, _ in model.named_children()} | {name for name, _ in model.named_parameters(recurse=False)}
    first, _, rest = key.partition(".")
    return first in own or (first == model.base_model_prefix and rest.partition(".")[0] in own)


def _shown(keys: Iterable[str]) -> str:
    return ", ".join(list(keys)[:3])
