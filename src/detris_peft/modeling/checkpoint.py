"""Adapter-only checkpoints: adapters and head; the frozen backbones are referenced by name.

A checkpoint folder contains `config.json`, `vision_adapter/` and `text_adapter/` (each a peft folder),
`head.safetensors` and a model card. It never contains frozen weights.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..atomic import atomic_update_dir
from ..errors import one_line
from .configuration_detris import DetrisConfig
from .encoders import backbone_class
from .model_card import model_card

HEAD = ("neck", "decoder", "projector")
HEAD_FILE = "head.safetensors"
ADAPTERS = {"vision": "vision_adapter", "text": "text_adapter"}
ADAPTER_FILE = "adapter_model.safetensors"
_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_BACKBONE_KEYWORDS = ("dtype", "device_map", "attn_implementation", "token", "cache_dir", "local_files_only")
_AUTO_KEYWORDS = ("adapter_kwargs", "trust_remote_code", "code_revision")  # passed by AutoModel, ignored


def trainable_state_dict(model: Any, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint contains: adapters and head, including running statistics.

    Args:
        model: a [`DetrisForReferringSegmentation`].
        state_dict: take the weights from here instead of from the model.

    Returns:
        The head's weights under the model's keys. An adapter's weights under peft's keys, which do not contain the
        adapter's name, with the prefix `vision_model.` or `text_model.`.
    """
    source = model.state_dict() if state_dict is None else state_dict
    state = {k: v for k, v in source.items() if k.split(".")[0] in HEAD}
    for kind in ADAPTERS:
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            adapter = get_peft_model_state_dict(
                backbone, state_dict=_below(source, f"{kind}_model."), save_embedding_layers=False
            )
            state.update({f"{kind}_model.{k}": v for k, v in adapter.items()})
    return state


def _below(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


# -- saving -----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    model: Any,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a checkpoint; see `DetrisForReferringSegmentation.save_pretrained`."""
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder}: expected a folder to save to, got a file.")
    if state_dict is not None:
        missing = sorted(trainable_state_dict(model).keys() - trainable_state_dict(model, state_dict).keys())
        if missing:
            raise ValueError(
                f"state_dict: expected all weights of adapters and head, but {len(missing)} are missing, such as "
                f"{missing[:3]}; pass the complete state dict."
            )
    unnamed = [kind for kind in ADAPTERS if not getattr(model.config, f"{kind}_name_or_path")]
    if unnamed:
        warnings.warn(
            f"{folder} does not name its {' and '.join(unnamed)} backbone, and frozen weights are not saved. To load "
            f"it, pass the backbone to from_pretrained, or set {unnamed[0]}_name_or_path in the config before saving.",
            stacklevel=3,
        )
    weights = model.state_dict() if state_dict is None else state_dict
    with atomic_update_dir(folder) as staging:
        for kind, name in ADAPTERS.items():
            backbone = getattr(model, f"{kind}_model")
            if isinstance(backbone, PeftModel):
                _save_adapter(backbone, _below(weights, f"{kind}_model."), staging / name, model.config, kind)
        head = {k: v.detach().contiguous() for k, v in weights.items() if k.split(".")[0] in HEAD}
        save_file(head, staging / HEAD_FILE, metadata={"format": "pt"})
        config = _portable(model.config, folder)
        config.save_pretrained(staging)
        (staging / "README.md").write_text(model_card(config), encoding="utf-8")
        for file in staging.rglob("*.safetensors"):  # safetensors writes files with mode 600
            file.chmod((staging / "README.md").stat().st_mode)
    for name in ADAPTERS.values():
        if getattr(model.config, name) is None:  # remove stale files of an earlier checkpoint
            shutil.rmtree(folder / name, ignore_errors=True)


def _save_adapter(
    backbone: PeftModel, state_dict: dict[str, torch.Tensor], folder: Path, config: DetrisConfig, kind: str
) -> None:
    peft_config = backbone.peft_config["default"]
    name = getattr(config, f"{kind}_name_or_path")
    # peft does not resolve paths, so a local folder is named by its absolute path.
    peft_config.base_model_name_or_path = os.path.realpath(name) if name and os.path.isdir(name) else name
    peft_config.revision = getattr(config, f"{kind}_revision")
    # Without `save_embedding_layers=False`, peft queries the Hub to find out whether the vocabulary was resized.
    backbone.save_pretrained(
        str(folder), selected_adapters=["default"], state_dict=state_dict, save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; ours is one folder up


def _portable(config: DetrisConfig, folder: Path) -> DetrisConfig:
    """Return a copy of the config with local backbones named relative to the checkpoint, so both can move together."""
    config = copy.deepcopy(config)
    for kind in ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and os.path.isdir(name):
            relative = os.path.relpath(os.path.realpath(name), os.path.realpath(folder))
            # The leading dot distinguishes a folder from a Hub id.
            relative = relative if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)
            setattr(config, f"{kind}_name_or_path", relative)
            getattr(config, f"{kind}_config")._name_or_path = ""  # transformers stores the path here as well
    config.architectures = ["DetrisForReferringSegmentation"]
    return config


# -- loading ----------------------------------------------------------------------------------------------------------


def load_checkpoint(
    cls: Any,
    name_or_path: str | os.PathLike,
    vision_model: PreTrainedModel | None,
    text_model: PreTrainedModel | None,
    *,
    config: DetrisConfig | None = None,
    subfolder: str = "",
    **kwargs: Any,
) -> Any:
    """Load a checkpoint; see `DetrisForReferringSegmentation.from_pretrained`."""
    hub = {k: kwargs[k] for k in _HUB_KEYWORDS if kwargs.get(k) is not None}
    keywords = {k: kwargs[k] for k in _BACKBONE_KEYWORDS if kwargs.get(k) is not None}
    known = _HUB_KEYWORDS + _BACKBONE_KEYWORDS + _AUTO_KEYWORDS
    unknown = sorted(k for k in kwargs if k not in known and not k.startswith("_"))
    if unknown:
        raise TypeError(f"from_pretrained got unexpected keyword arguments: {', '.join(unknown)}.")
    folder = find_folder(name_or_path, subfolder, **hub)
    config = read_config(folder) if config is None else copy.deepcopy(config)
    check_complete(folder, config)
    vision_model = _backbone(config, "vision", folder, vision_model, keywords)
    text_model = _backbone(config, "text", folder, text_model, keywords)
    model = cls(config, vision_model, text_model)
    for kind, name in ADAPTERS.items():
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            expected = get_peft_model_state_dict(backbone, save_embedding_layers=False)
            set_peft_model_state_dict(backbone, _read_weights(folder / name / ADAPTER_FILE, expected))
    head = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in HEAD}
    # Not strict, because the backbones' keys are absent. Those of the head were checked by `_read_weights`.
    model.load_state_dict(_read_weights(folder / HEAD_FILE, head), strict=False)
    for part in HEAD:
        model.get_submodule(part).to(vision_model.device)
    return model.eval()


def find_folder(name_or_path: str | os.PathLike, subfolder: str = "", **hub: Any) -> Path:
    """Return a local folder, or download a Hub repository (adapter, head and processor files only)."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        name = str(name_or_path)
        if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise FileNotFoundError(f"{name}: expected a checkpoint folder or a Hub id (user/name), got neither.")
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"], **hub))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{name}: no such folder, and the download from the Hub failed: {one_line(error, first_line=True)}"
            ) from error
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a checkpoint written by DetrisForReferringSegmentation.save_pretrained, got a folder "
            "without config.json."
        )
    return folder


def read_config(folder: Path) -> DetrisConfig:
    """Read the config of a checkpoint folder.

    Raises:
        ValueError: the file is damaged, or belongs to another type of model.
    """
    file = folder / "config.json"
    try:
        model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected a model config, got invalid JSON ({one_line(error)}); copy or download it again."
        ) from None
    if model_type != DetrisConfig.model_type:
        raise ValueError(
            f"{file}: expected model_type {DetrisConfig.model_type!r}, got {model_type!r}; pass a DETRIS checkpoint."
        )
    return DetrisConfig.from_pretrained(folder)


def check_complete(folder: Path, config: DetrisConfig) -> None:
    """Raise a FileNotFoundError if a file of the checkpoint is missing."""
    required = [folder / HEAD_FILE]
    required += [folder / name / ADAPTER_FILE for name in ADAPTERS.values() if getattr(config, name) is not None]
    for file in required:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the checkpoint; copy or download the complete folder.")


def _read_weights(file: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a weights file, which must contain exactly the expected keys and shapes."""
    try:
        given = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or incomplete ({one_line(error)}); copy or download it again.") from None
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{file} does not fit config.json or the backbone: {len(missing)} keys are missing {missing[:3]}, "
            f"{len(unexpected)} are unexpected {unexpected[:3]}; take all files from the same checkpoint."
        )
    for key, value in given.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"{file} does not fit config.json or the backbone: expected {tuple(expected[key].shape)} for {key}, "
                f"got {tuple(value.shape)}; take all files from the same checkpoint."
            )
    return given


def _backbone(
    config: DetrisConfig, kind: str, folder: Path, given: PreTrainedModel | None, keywords: dict[str, Any]
) -> PreTrainedModel:
    """Return the backbone that was passed, or load the one that the config names; update the name in the config."""
    backbone = given if given is not None else _load_backbone(config, kind, folder, keywords)
    for name in ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
        expected, got = (getattr(c, name, None) for c in (getattr(config, f"{kind}_config"), backbone.config))
        if expected != got:
            raise ValueError(
                f"expected a {kind} encoder with {name}={expected}, as in training, got {got}; load the checkpoint "
                "over the backbone that it was trained with, or train a new one with from_backbones."
            )
    config.name_backbone(kind, backbone.name_or_path)
    return backbone


def _load_backbone(config: DetrisConfig, kind: str, folder: Path, keywords: dict[str, Any]) -> PreTrainedModel:
    name, field = getattr(config, f"{kind}_name_or_path"), f"{kind}_name_or_path"
    fix = f"pass a loaded one as {kind}_model=..., or correct {field} in {folder / 'config.json'}"
    if not name:
        raise ValueError(f"The checkpoint does not name its {kind} backbone and contains no frozen weights; {fix}.")
    if name.startswith("."):
        name = str((folder / name).resolve())
    if os.path.isabs(name) and not os.path.isdir(name):
        raise FileNotFoundError(f"The {kind} backbone {name} does not exist; {fix}.")
    revision = getattr(config, f"{kind}_revision")
    if revision:
        keywords = {**keywords, "revision": revision}
    cls: Any = backbone_class(getattr(config, f"{kind}_config"))
    try:
        backbone, info = cls.from_pretrained(name, output_loading_info=True, **keywords)
    except (OSError, SafetensorError) as error:
        reason = one_line(error, first_line=True)
        raise OSError(f"The {kind} backbone {name} cannot be loaded ({reason}); {fix}.") from error
    # transformers initializes missing weights randomly and only warns. Poolers are never used, and often missing.
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing:
        raise ValueError(
            f"The {kind} backbone {name} is missing {len(missing)} weights, such as {missing[:3]}; {fix}."
        )
    return backbone
