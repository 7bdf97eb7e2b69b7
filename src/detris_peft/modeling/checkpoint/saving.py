"""Save checkpoints: all files at once, over nothing but files of an earlier checkpoint."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging

from ...atomic import MANIFEST, atomic_update_dir, recover, sync_tree
from ...errors import check_path, one_line
from ...manifest import file_entry, write_manifest
from ...outputs import mark_folder
from ...safe_loading import read_json
from ..backbone_adapters import set_default_targets
from ..backbone_folders import use_default_permissions
from ..card_image import CARD_IMAGE_FILE
from ..configuration_detris import DetrisConfig
from ..model_card import CARD_ATTACHMENTS, CARD_FILE, CARD_HEADING, is_hub_name, model_card
from .files import (
    ADAPTER_FILE,
    ADAPTERS,
    BACKBONE_FILE,
    BACKBONES,
    CHECKPOINT_FILES,
    HEAD_FILE,
    PROCESSOR_FILES,
    absent_folders,
)
from .trainer_index import write_index
from .weights import check_nothing_is_lost, check_values, selected_adapters, trainable_state_dict

logger = logging.get_logger(__name__)

# Fields of an adapter's config that peft sets when it adds or saves the adapter.
_SET_BY_PEFT = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")


def save_checkpoint(
    model: Any,
    folder: str | os.PathLike,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    adapter_name: str | None = None,
) -> None:
    """Save a checkpoint; see `DetrisForReferringSegmentation.save_pretrained`."""
    check_path("save_directory", folder)
    if state_dict is not None and not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict: expected weights by name, got {type(state_dict).__name__}; pass model.state_dict() or None."
        )
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder}: expected a folder to save to, got a file.")
    unnamed = [kind for kind in ADAPTERS if not getattr(model.config, f"{kind}_name_or_path")]
    if unnamed and not model.config.train_backbones:
        warnings.warn(
            f"{folder} does not name its {' and '.join(unnamed)} backbone, and frozen weights are not saved. To load "
            f"it, pass the backbone to from_pretrained, or set {unnamed[0]}_name_or_path in the config before saving.",
            stacklevel=3,
        )
    # 1. Checks, before anything is written
    adapters = selected_adapters(model, adapter_name)
    check_nothing_is_lost(model, adapter_name)
    weights = trainable_state_dict(model, state_dict, adapter_name)
    check_values(weights, str(folder))
    config = _portable(_with_adapters(model, adapters), folder)
    recover(folder)
    earlier = _earlier_files(folder)
    _check_foreign_files(folder, earlier)
    _report(model, folder, adapters)
    # 2. Files
    keeps_card = (folder / CARD_FILE).is_file() and CARD_FILE not in earlier
    kept = earlier & {CARD_IMAGE_FILE} if keeps_card else set()  # the image that an edited card shows
    outdated = {name for name in earlier if name.partition("/")[0] in absent_folders(config)}
    removed = sorted(outdated | (earlier & {*CARD_ATTACHMENTS} - kept))
    marks = _contains_only_known_files(folder)
    try:
        with atomic_update_dir(folder, removed) as staging:
            for kind, name in adapters.items():
                _save_adapter_config(getattr(model, f"{kind}_model"), name, config, kind, staging / ADAPTERS[kind])
                prefix = f"{kind}_model."
                own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
                _save_weights(own, staging / ADAPTERS[kind] / ADAPTER_FILE)
            for kind, name in BACKBONES.items() if config.train_backbones else ():
                _save_backbone(getattr(model, f"{kind}_model"), kind, weights, staging / name)
            _save_weights({key: weights[key] for key in model.head_keys}, staging / HEAD_FILE)
            write_index(staging, model, adapters)
            config.save_pretrained(staging)
            if keeps_card:
                logger.warning(f"{folder / CARD_FILE} differs from what save_pretrained wrote, so it is kept.")
            else:
                (staging / CARD_FILE).write_text(model_card(config), encoding="utf-8")
            for name in kept:
                (staging / name).parent.mkdir()
                shutil.copyfile(folder / name, staging / name)
            use_default_permissions(staging)
            write_manifest(staging)
            if marks:
                mark_folder(staging, "checkpoint")
            sync_tree(staging)
    except (OSError, SafetensorError) as error:  # safetensors does not raise an OSError for a full disk
        raise OSError(
            f"{folder}: the checkpoint cannot be written ({one_line(error)}); free disk space, or choose another "
            "folder."
        ) from error


# -- what the folder contains -----------------------------------------------------------------------------------------


def _earlier_files(folder: Path) -> set[str]:
    """Return the files in a folder that an earlier `save_pretrained` wrote and that may be replaced."""
    existing = {name for name in CHECKPOINT_FILES if (folder / name).is_file()}
    if MANIFEST in existing:
        try:
            manifest = read_json(folder / MANIFEST)
        except ValueError:
            return set()
        if not isinstance(manifest, dict) or HEAD_FILE not in manifest:
            return set()
        # A card that was edited since is not replaced.
        edited = {CARD_FILE} & existing if manifest.get(CARD_FILE) != _entry(folder / CARD_FILE) else set()
        return (existing & {*manifest, MANIFEST}) - edited
    try:
        config = read_json(folder / "config.json") if "config.json" in existing else None
    except ValueError:
        return set()
    if not isinstance(config, dict) or config.get("model_type") != DetrisConfig.model_type:
        return set()
    # Written before 0.1.0, without a manifest
    absent = {name for name in ADAPTERS.values() if config.get(name) is None} | set(BACKBONES.values())
    files = {name for name in existing if name.partition("/")[0] not in absent}
    return files if _is_generated_card(folder / CARD_FILE) else files - {CARD_FILE}


def _entry(file: Path) -> dict[str, Any] | None:
    return file_entry(file) if file.is_file() else None


def _is_generated_card(file: Path) -> bool:
    return file.is_file() and CARD_HEADING in file.read_text(encoding="utf-8", errors="replace")


def _check_foreign_files(folder: Path, earlier: set[str]) -> None:
    """Raise a ValueError if saving would replace or contradict a file that `save_pretrained` did not write."""
    kept = {CARD_FILE, *CARD_ATTACHMENTS}
    foreign = [n for n in CHECKPOINT_FILES if n not in kept and n not in earlier and (folder / n).exists()]
    if foreign:
        raise ValueError(
            f"{folder}: expected a new folder or one that save_pretrained wrote, got one with another {foreign[0]}; "
            "choose another folder, or move that file."
        )


def _contains_only_known_files(folder: Path) -> bool:
    """Return whether the folder may be marked: `--overwrite` of the commands replaces marked folders completely."""
    known = {name.partition("/")[0] for name in (*CHECKPOINT_FILES, *PROCESSOR_FILES)}
    return not folder.is_dir() or {path.name for path in folder.iterdir()} <= known


# -- configs ----------------------------------------------------------------------------------------------------------


def _report(model: Any, folder: Path, adapters: Mapping[str, str]) -> None:
    for kind, name in adapters.items():
        others = [other for other in getattr(model, f"{kind}_model").peft_config if other != name]
        if others or name != "default":
            omitted = f"; not saved: {', '.join(map(repr, others))}" if others else ""
            logger.warning(f"{folder}: saving the adapter {name!r} of the {kind} encoder{omitted}.")


def _with_adapters(model: Any, adapters: Mapping[str, str]) -> DetrisConfig:
    """Return a copy of the model's config with the configs of the saved adapters."""
    config = copy.deepcopy(model.config)
    if (config.bridger is None) != (model.bridger is None):
        raise ValueError(
            "config.bridger: expected the value with which the model was created, got another one; restore it, or "
            "create the model again."
        )
    for kind, field in ADAPTERS.items():
        if kind not in adapters:
            if getattr(config, field) is not None:
                raise ValueError(
                    f"{kind}_model: expected the adapter that config.{field} describes, got an encoder without it; "
                    f"set config.{field} = None if it was unloaded, or save before merge_and_unload(), whose result "
                    "a checkpoint does not contain."
                )
            continue
        tuner = getattr(model, f"{kind}_model").base_model
        saved, configured = tuner.peft_config[adapters[kind]], getattr(config, field)
        if type(configured) is type(saved) and isinstance(tuner, PEFT_TYPE_TO_TUNER_MAPPING[saved.peft_type]):
            # peft completes the config of an adapter for the backbone; config.json keeps it as the user wrote it.
            completed = copy.deepcopy(configured)
            set_default_targets(completed, tuner.model)
            completed = tuner._prepare_adapter_config(completed, tuner.get_model_config(tuner.model))
            if _own_fields(completed) == _own_fields(saved):
                continue
        saved = copy.deepcopy(saved)
        saved.base_model_name_or_path, saved.inference_mode = None, False
        setattr(config, field, saved)
    config.validate_architecture()
    return config


def _own_fields(config: PeftConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _SET_BY_PEFT}


def _save_adapter_config(backbone: PeftModel, name: str, config: DetrisConfig, kind: str, folder: Path) -> None:
    """Write `adapter_config.json` as `PeftModel.save_pretrained` does."""
    peft_config = copy.deepcopy(backbone.peft_config[name])
    base = getattr(config, f"{kind}_name_or_path")
    # peft cannot find a local backbone relative to this file, and an absolute path is wrong on other machines.
    peft_config.base_model_name_or_path = base if base and is_hub_name(base) else None
    peft_config.revision = getattr(config, f"{kind}_revision")
    peft_config.inference_mode = True
    mapping = None
    if peft_config.task_type is None:
        encoder = type(backbone.get_base_model())
        mapping = {"base_model_class": encoder.__name__, "parent_library": encoder.__module__}
    peft_config.save_pretrained(str(folder), auto_mapping_dict=mapping)


def _portable(config: DetrisConfig, folder: Path) -> DetrisConfig:
    """Name local backbones relative to the checkpoint, so that both can move together. Changes the config."""
    for kind, trained in BACKBONES.items() if config.train_backbones else ():
        setattr(config, f"{kind}_name_or_path", os.path.join(os.curdir, trained))
        setattr(config, f"{kind}_revision", None)
    for kind in () if config.train_backbones else ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and os.path.isdir(name):
            relative = os.path.relpath(os.path.realpath(name), os.path.realpath(folder))
            # The leading dot distinguishes a folder from a Hub id.
            relative = relative if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)
            setattr(config, f"{kind}_name_or_path", relative)
            getattr(config, f"{kind}_config")._name_or_path = ""  # transformers stores the path here as well
    config.architectures = ["DetrisForReferringSegmentation"]
    return config


def _save_backbone(backbone: Any, kind: str, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a trained encoder as transformers does, in a single file."""
    folder.mkdir()
    prefix = f"{kind}_model."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    config = copy.deepcopy(backbone.config)
    config.dtype = next(value.dtype for value in own.values() if value.is_floating_point())  # in which it is loaded
    config.save_pretrained(folder)
    _save_weights(own, folder / BACKBONE_FILE)


def _save_weights(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    # Copies, because safetensors does not accept tensors that share memory.
    copies = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    save_file(copies, file, metadata={"format": "pt"})
