"""Load checkpoints: every file is checked before the backbones are loaded."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from transformers import PreTrainedModel

from ...adapters.layer import execution_device
from ...adapters.state_dict import check_weights, load_adapter_state_dict
from ...atomic import MANIFEST, recover
from ...errors import check_path, one_line
from ...locks import lock_folder
from ...manifest import manifest_problem
from ...safe_loading import read_json, read_safetensors
from ..backbones import load_pretrained_backbone
from ..casting import cast_model
from ..configuration_detris import DetrisConfig
from ..encoders import architecture, first_difference
from ..hub_download import download
from ..model_card import CARD_ATTACHMENTS
from .files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTERS,
    BACKBONE_FILE,
    BACKBONES,
    CHECKPOINT_FILES,
    HEAD,
    HEAD_FILE,
    PROCESSOR_FILES,
    weight_files,
)

_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_BACKBONE_KEYWORDS = (
    "dtype",
    "device_map",
    "max_memory",
    "offload_folder",
    "quantization_config",
    "attn_implementation",
    "use_safetensors",
    "token",
    "cache_dir",
    "local_files_only",
)
# Passed by AutoModel, or without effect in transformers as well.
_IGNORED_KEYWORDS = ("adapter_kwargs", "trust_remote_code", "code_revision", "low_cpu_mem_usage")


def load_checkpoint(
    cls: Any,
    name_or_path: str | os.PathLike,
    vision_model: PreTrainedModel | None,
    text_model: PreTrainedModel | None,
    *,
    config: DetrisConfig | None = None,
    subfolder: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint; see `DetrisForReferringSegmentation.from_pretrained`."""
    check_path("pretrained_model_name_or_path", name_or_path)
    hub, keywords = _split_keywords(kwargs)
    subfolder = subfolder or ""
    if recover(Path(name_or_path, subfolder)) and "adapter_kwargs" in kwargs:
        config = None  # read by AutoModel before an interrupted save was completed
    # 1. Files
    folder = find_folder(name_or_path, subfolder, **hub)
    with lock_folder(folder, shared=True):
        config = read_config(folder) if config is None else copy.deepcopy(config)
        check_complete(folder, config)
        trained = {f"{name}/{BACKBONE_FILE}" for name in BACKBONES.values()}  # loaded by transformers below
        weights = {name: read_safetensors(folder / name) for name in weight_files(config) if name not in trained}
    # 2. Backbones
    vision_model = _backbone(config, "vision", folder, vision_model, keywords)
    text_model = _backbone(config, "text", folder, text_model, keywords)
    # 3. Adapters and head
    model = cls(config, vision_model, text_model)
    for kind, name in ADAPTERS.items():
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            file = f"{name}/{ADAPTER_FILE}"
            load_adapter_state_dict(backbone, "default", weights[file], where=str(folder / file))
    head = {key: value for key, value in model.state_dict().items() if key in model.head_keys}
    check_weights(weights[HEAD_FILE], head, "the head", f"{folder / HEAD_FILE}: the")
    model.load_state_dict(weights[HEAD_FILE], strict=False)  # the backbones' keys are absent
    for part in (getattr(model, name) for name in HEAD):
        if part is not None:
            part.to(execution_device(vision_model))
    if (dtype := _as_dtype(keywords.get("dtype"))) is not None:
        cast_model(model, dtype)
    return model.eval()


def _as_dtype(dtype: Any) -> torch.dtype | None:
    """Return a dtype that is given as such or by its name; None for "auto", with which backbones keep their own."""
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) else None


def _split_keywords(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keyword arguments that locate the checkpoint, and those for the backbones."""
    kwargs = dict(kwargs)
    old = kwargs.pop("torch_dtype", None)  # the old name of dtype
    if old is not None:
        if kwargs.get("dtype") not in (None, old):
            raise ValueError(f"torch_dtype={old}: expected the same as dtype={kwargs['dtype']}; pass dtype only.")
        kwargs["dtype"] = old
    known = sorted({*_HUB_KEYWORDS, *_BACKBONE_KEYWORDS, "subfolder", "config", "vision_model", "text_model"})
    unknown = sorted(set(kwargs) - {*known, *_IGNORED_KEYWORDS})
    unknown = [name for name in unknown if not name.startswith("_")]
    if unknown:
        raise TypeError(
            f"from_pretrained got unexpected keyword arguments: {', '.join(unknown)}; expected some of "
            f"{', '.join(known)}; for others, load the backbones yourself and pass them."
        )
    hub = {k: kwargs[k] for k in _HUB_KEYWORDS if kwargs.get(k) is not None}
    return hub, {k: kwargs[k] for k in _BACKBONE_KEYWORDS if kwargs.get(k) is not None}


def find_folder(name_or_path: str | os.PathLike, subfolder: str = "", **hub: Any) -> Path:
    """Return a local folder, or download a Hub repository (files of the checkpoint and the processor only).

    An interrupted save in a local folder is completed or undone first.
    """
    name, folder = str(name_or_path), Path(name_or_path) / subfolder
    recover(folder)
    if Path(name_or_path).is_dir():
        if not (folder / "config.json").is_file():
            best = folder / "best"
            fix = f"pass {best}" if (best / "config.json").is_file() else "check the path"
            raise FileNotFoundError(
                f"{folder}: expected a checkpoint written by DetrisForReferringSegmentation.save_pretrained, got a "
                f"folder without config.json; {fix}."
            )
        return folder
    if os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"{name}: expected a checkpoint folder or a Hub id (user/name), got neither; check the path."
        )
    files = [file for file in (*CHECKPOINT_FILES, *PROCESSOR_FILES) if file not in CARD_ATTACHMENTS]
    folder = download(name, subfolder, files, **hub) / subfolder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{name}: expected a checkpoint on the Hub, got a repository without "
            f"{Path(subfolder, 'config.json').as_posix()}; check the name, revision= and subfolder=."
        )
    return folder


def read_config(folder: Path) -> DetrisConfig:
    """Read the config of a checkpoint folder.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or belongs to another type of model.
    """
    file = folder / "config.json"
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a model config, got JSON of another type; copy or download it again.")
    model_type = content.get("model_type")
    if model_type != DetrisConfig.model_type:
        raise ValueError(
            f"{file}: expected model_type {DetrisConfig.model_type!r}, got {model_type!r}; pass a DETRIS checkpoint."
        )
    try:
        return DetrisConfig.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(error)}") from None
    # transformers and peft raise any of these for values of a wrong type.
    except (ArithmeticError, AttributeError, LookupError, TypeError, StrictDataclassError) as error:
        raise ValueError(
            f"{file}: expected the config of a DETRIS model, got {one_line(error).rstrip('.')}; copy or download it "
            "again."
        ) from None


def check_complete(folder: Path, config: DetrisConfig) -> None:
    """Check that a checkpoint has the files that its config names, that they belong together and are intact.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a weights file does not match the manifest, or an adapter does not match the config.
    """
    names = weight_files(config)
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing from the checkpoint; copy or download the complete folder."
            )
    for name in ADAPTERS.values():
        adapter, config_file = getattr(config, name), folder / name / ADAPTER_CONFIG_FILE
        if adapter is None and (folder / name / ADAPTER_FILE).exists():
            raise ValueError(
                f"{folder / 'config.json'}: expected {name} with the fields of the adapter in {folder / name}, got "
                "null; take all files from the same checkpoint, or remove that folder."
            )
        if adapter is not None and config_file.is_file():
            _check_adapter_config(config_file, adapter.peft_type)
    if (folder / MANIFEST).exists():  # earlier versions wrote none
        problem = manifest_problem(folder, names)
        if problem:
            raise ValueError(
                f"{folder}: expected the weights that {MANIFEST} describes, but {problem}; copy or download the "
                f"complete folder again, or remove {MANIFEST} if you changed the weights yourself."
            )


def _check_adapter_config(file: Path, peft_type: str) -> None:
    content = read_json(file)
    found = content.get("peft_type") if isinstance(content, dict) else None
    expected = str(getattr(peft_type, "value", peft_type))
    if found != expected:
        raise ValueError(
            f"{file}: expected peft_type {expected!r}, as in config.json, got {found!r}; take all files from the same "
            "checkpoint."
        )


def _backbone(
    config: DetrisConfig, kind: str, folder: Path, given: PreTrainedModel | None, keywords: dict[str, Any]
) -> PreTrainedModel:
    """Return the backbone that was passed, or load the one that the config names; update the name in the config."""
    if given is not None and config.train_backbones:
        raise ValueError(
            f"{kind}_model: expected None, because {folder} contains the trained encoder, got a "
            f"{type(given).__name__}; omit {kind}_model."
        )
    backbone = given if given is not None else _load_backbone(config, kind, folder, keywords)
    if difference := first_difference(getattr(config, f"{kind}_config"), backbone.config):
        name, expected, got = difference
        raise ValueError(
            f"expected a {kind} encoder with {name}={expected}, as in training, got {got}; load the checkpoint over "
            "the backbone that it was trained with, or train a new one with from_backbones."
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
    return load_pretrained_backbone(kind, name, fix, architecture(getattr(config, f"{kind}_config")), **keywords)
