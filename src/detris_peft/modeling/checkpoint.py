"""Adapter-only checkpoints: what was trained, over backbones that the checkpoint names.

A folder holds `config.json`, `vision_adapter/` and `text_adapter/` (each a peft folder of its own), `head.safetensors`
and a model card. No frozen weight is ever in it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..atomic import atomic_update_dir
from .configuration_detris import DetrisConfig
from .encoders import backbone_class
from .model_card import model_card

if TYPE_CHECKING:
    from .modeling_detris import DetrisForReferringSegmentation

HEAD = ("neck", "decoder", "projector")
HEAD_FILE = "head.safetensors"
ADAPTERS = {"vision": "vision_adapter", "text": "text_adapter"}
ADAPTER_FILE = "adapter_model.safetensors"
_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_BACKBONE_KEYWORDS = ("dtype", "device_map", "attn_implementation", "token", "cache_dir", "local_files_only")
_AUTO_KEYWORDS = ("adapter_kwargs", "trust_remote_code", "code_revision")  # sent along by AutoModel, of no use here


def trainable_state_dict(
    model: DetrisForReferringSegmentation, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: adapters and head, running statistics included.

    Args:
        state_dict: take the weights from here instead of from the model.

    Returns:
        The head's weights by the model's own names; an adapter's by peft's, which leave the adapter's name out, under
        `vision_model.` or `text_model.`.
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
    model: DetrisForReferringSegmentation,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint; see `DetrisForReferringSegmentation.save_pretrained`."""
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder to save to.")
    if state_dict is not None:
        lacking = sorted(trainable_state_dict(model).keys() - trainable_state_dict(model, state_dict).keys())
        if lacking:
            raise ValueError(f"state_dict lacks {len(lacking)} weights of adapters or head, among them {lacking[:3]}.")
    unnamed = [kind for kind in ADAPTERS if not getattr(model.config, f"{kind}_name_or_path")]
    if unnamed:
        warnings.warn(
            f"{folder} will not name its {' and '.join(unnamed)} backbone, and frozen weights are not saved: to load "
            f"it, pass them to from_pretrained, or set {unnamed[0]}_name_or_path in the model's config before saving.",
            stacklevel=3,
        )
    state_dict = model.state_dict() if state_dict is None else state_dict
    with atomic_update_dir(folder) as staging:
        for kind, name in ADAPTERS.items():
            backbone = getattr(model, f"{kind}_model")
            if isinstance(backbone, PeftModel):
                _save_adapter(backbone, _below(state_dict, f"{kind}_model."), staging / name, model.config, kind)
        head = {k: v.detach().contiguous() for k, v in state_dict.items() if k.split(".")[0] in HEAD}
        save_file(head, staging / HEAD_FILE, metadata={"format": "pt"})
        config = _portable(model.config, folder)
        config.save_pretrained(staging)
        (staging / "README.md").write_text(model_card(config), encoding="utf-8")
        for file in staging.rglob("*.safetensors"):  # which safetensors writes for its owner's eyes alone
            file.chmod((staging / "README.md").stat().st_mode)
    for name in ADAPTERS.values():
        if getattr(model.config, name) is None:  # what an earlier checkpoint left here would pass for this one's
            shutil.rmtree(folder / name, ignore_errors=True)


def _save_adapter(
    backbone: PeftModel, state_dict: dict[str, torch.Tensor], folder: Path, config: DetrisConfig, kind: str
) -> None:
    peft_config = backbone.peft_config["default"]
    name = getattr(config, f"{kind}_name_or_path")
    # peft takes a path as it stands, so a local folder is named in full.
    peft_config.base_model_name_or_path = os.path.realpath(name) if name and os.path.isdir(name) else name
    peft_config.revision = getattr(config, f"{kind}_revision")
    # `save_embedding_layers`: left to itself peft asks the Hub whether the vocabulary was resized.
    backbone.save_pretrained(
        str(folder), selected_adapters=["default"], state_dict=state_dict, save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card: ours stands one folder up


def _portable(config: DetrisConfig, folder: Path) -> DetrisConfig:
    """Backbones that lie in a local folder are named relative to the checkpoint, so that both can move together."""
    config = copy.deepcopy(config)
    for kind in ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and os.path.isdir(name):
            relative = os.path.relpath(os.path.realpath(name), os.path.realpath(folder))
            # The dot tells a folder from a Hub name.
            relative = relative if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)
            setattr(config, f"{kind}_name_or_path", relative)
            getattr(config, f"{kind}_config")._name_or_path = ""  # where transformers keeps the path once more
    config.architectures = ["DetrisForReferringSegmentation"]
    return config


# -- loading ----------------------------------------------------------------------------------------------------------


def load_checkpoint(
    cls: type[DetrisForReferringSegmentation],
    name_or_path: str | os.PathLike,
    vision_model: PreTrainedModel | None,
    text_model: PreTrainedModel | None,
    *,
    config: DetrisConfig | None = None,
    subfolder: str = "",
    **kwargs: Any,
) -> DetrisForReferringSegmentation:
    """Read a checkpoint; see `DetrisForReferringSegmentation.from_pretrained`."""
    hub = {k: kwargs[k] for k in _HUB_KEYWORDS if kwargs.get(k) is not None}
    keywords = {k: kwargs[k] for k in _BACKBONE_KEYWORDS if kwargs.get(k) is not None}
    known = _HUB_KEYWORDS + _BACKBONE_KEYWORDS + _AUTO_KEYWORDS
    unknown = sorted(k for k in kwargs if k not in known and not k.startswith("_"))
    if unknown:
        raise TypeError(f"from_pretrained does not know {', '.join(unknown)}.")
    folder = find_folder(name_or_path, subfolder, **hub)
    config = read_config(folder) if config is None else copy.deepcopy(config)
    check_complete(folder, config)
    vision_model = _backbone(config, "vision", folder, vision_model, keywords)
    text_model = _backbone(config, "text", folder, text_model, keywords)
    model = cls(config, vision_model, text_model)
    for kind, name in ADAPTERS.items():
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            wanted = get_peft_model_state_dict(backbone, save_embedding_layers=False)
            set_peft_model_state_dict(backbone, _read_weights(folder / name / ADAPTER_FILE, wanted))
    head = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in HEAD}
    model.load_state_dict(_read_weights(folder / HEAD_FILE, head), strict=False)  # strict: `_read_weights` was
    for part in HEAD:
        model.get_submodule(part).to(vision_model.device)
    return model.eval()


def find_folder(name_or_path: str | os.PathLike, subfolder: str = "", **hub: Any) -> Path:
    """A local folder as it is, or a Hub repository downloaded (its adapter, head and processor files only)."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        name = str(name_or_path)
        if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise FileNotFoundError(f"There is no checkpoint folder {name}: give a folder or a Hub name user/name.")
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"], **hub))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"There is no folder {name}, nor can it be had from the Hub: {_first_line(error)}"
            ) from error
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: give a folder that DetrisForReferringSegmentation.save_pretrained wrote."
        )
    return folder


def read_config(folder: Path) -> DetrisConfig:
    """The config of a checkpoint folder, which must be one of ours."""
    file = folder / "config.json"
    try:
        model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{file} is not a config ({error}): copy or download it again.") from None
    if model_type != DetrisConfig.model_type:
        raise ValueError(
            f"{file} is of a {model_type!r} model, needed is a checkpoint of {DetrisConfig.model_type!r}."
        )
    return DetrisConfig.from_pretrained(folder)


def check_complete(folder: Path, config: DetrisConfig) -> None:
    """Raise if a checkpoint folder lacks one of its files."""
    needed = [folder / HEAD_FILE]
    needed += [folder / name / ADAPTER_FILE for name in ADAPTERS.values() if getattr(config, name) is not None]
    for file in needed:
        if not file.is_file():
            raise FileNotFoundError(f"The checkpoint lacks {file}: copy or download it whole.")


def _read_weights(file: Path, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in a file, which must be those wanted: no more, no fewer, of the same shapes."""
    try:
        given = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not whole ({error}): copy or download it again.") from None
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"{file} does not fit config.json or the backbone: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(extra)} are left over {extra[:3]}. Take all files from the same checkpoint."
        )
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"{file} does not fit config.json or the backbone: {key} is {tuple(value.shape)} in the file, needed "
                f"is {tuple(wanted[key].shape)}. Take all files from the same checkpoint."
            )
    return given


def _backbone(
    config: DetrisConfig, kind: str, folder: Path, given: PreTrainedModel | None, keywords: dict[str, Any]
) -> PreTrainedModel:
    """The backbone that was passed, or the one that the config names; the config then says where it is."""
    backbone = given if given is not None else _load_backbone(config, kind, folder, keywords)
    for name in ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
        want, got = (getattr(c, name, None) for c in (getattr(config, f"{kind}_config"), backbone.config))
        if want != got:
            raise ValueError(
                f"The checkpoint was trained over a {kind} encoder with {name}={want}, this one has {got}: load it "
                f"over the backbone it was trained with, or train anew with from_backbones."
            )
    config.name_backbone(kind, backbone.name_or_path)
    return backbone


def _load_backbone(config: DetrisConfig, kind: str, folder: Path, keywords: dict[str, Any]) -> PreTrainedModel:
    name, field = getattr(config, f"{kind}_name_or_path"), f"{kind}_name_or_path"
    mend = f"pass a loaded one as {kind}_model=... or mend {field} in {folder / 'config.json'}"
    if not name:
        raise ValueError(f"The checkpoint does not name its {kind} backbone, and holds no frozen weight: {mend}.")
    if name.startswith("."):
        name = str((folder / name).resolve())
    if os.path.isabs(name) and not os.path.isdir(name):
        raise FileNotFoundError(f"The {kind} backbone is gone from {name}: {mend}.")
    revision = getattr(config, f"{kind}_revision")
    if revision:
        keywords = {**keywords, "revision": revision}
    cls: Any = backbone_class(getattr(config, f"{kind}_config"))
    try:
        backbone, info = cls.from_pretrained(name, output_loading_info=True, **keywords)
    except (OSError, SafetensorError) as error:
        raise OSError(f"The {kind} backbone {name} cannot be loaded ({_first_line(error)}): {mend}.") from error
    # transformers fills gaps with random numbers and a warning. Poolers are never used, and often missing.
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing:
        raise ValueError(f"The {kind} backbone {name} lacks {len(missing)} weights, among them {missing[:3]}: {mend}.")
    return backbone


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
