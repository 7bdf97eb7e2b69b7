"""Adapter-only checkpoints: what was trained, over backbones that the checkpoint names.

A folder holds `config.json`, `vision_adapter/` and `text_adapter/` (each a peft folder of its own), `head.safetensors`
and a model card. No frozen weight is ever in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_detris import DetrisConfig
from .model_card import model_card

if TYPE_CHECKING:
    from .modeling_detris import DetrisForReferringSegmentation

HEAD_FILE = "head.safetensors"
ADAPTERS = {"vision": "vision_adapter", "text": "text_adapter"}
_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_BACKBONE_KEYWORDS = ("dtype", "device_map", "attn_implementation", "token", "cache_dir", "local_files_only")


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
    state_dict = model.state_dict() if state_dict is None else state_dict
    with written_aside(folder) as aside:
        for kind, name in ADAPTERS.items():
            backbone = getattr(model, f"{kind}_model")
            if isinstance(backbone, PeftModel):
                _save_adapter(backbone, _below(state_dict, f"{kind}_model."), aside / name, model.config, kind)
        head = {k: v for k, v in state_dict.items() if k.split(".")[0] in ("neck", "decoder", "projector")}
        save_file({k: v.detach().contiguous() for k, v in head.items()}, aside / HEAD_FILE, metadata={"format": "pt"})
        _portable(model.config, folder).save_pretrained(aside)
        (aside / "README.md").write_text(model_card(model.config), encoding="utf-8")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, whose files move into it when the block ends well and vanish when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield aside
        for file in sorted(p for p in aside.rglob("*") if p.is_file()):
            target = folder / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _save_adapter(
    backbone: PeftModel, state_dict: dict[str, torch.Tensor], folder: Path, config: DetrisConfig, kind: str
) -> None:
    peft_config = backbone.peft_config["default"]
    peft_config.base_model_name_or_path = getattr(config, f"{kind}_name_or_path")
    peft_config.revision = getattr(config, f"{kind}_revision")
    # `save_embedding_layers`: left to itself peft asks the Hub whether the vocabulary was resized.
    backbone.save_pretrained(
        str(folder), selected_adapters=["default"], state_dict=state_dict, save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card: ours stands one folder up


def _portable(config: DetrisConfig, folder: Path) -> DetrisConfig:
    """Backbones that lie in a local folder are named relative to the checkpoint, so that both can move together."""
    config = config.__class__.from_dict(config.to_dict())
    for kind in ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and os.path.isdir(name):
            setattr(config, f"{kind}_name_or_path", os.path.relpath(os.path.realpath(name), os.path.realpath(folder)))
    config.architectures = ["DetrisForReferringSegmentation"]
    return config


def _below(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


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
    backbone_keywords = {k: kwargs[k] for k in _BACKBONE_KEYWORDS if kwargs.get(k) is not None}
    unknown = sorted(k for k in kwargs if k not in _HUB_KEYWORDS + _BACKBONE_KEYWORDS and not k.startswith("_"))
    if unknown:
        raise TypeError(f"from_pretrained does not know {', '.join(unknown)}.")
    folder = find_folder(name_or_path, subfolder, **hub)
    if config is None:
        config = DetrisConfig.from_pretrained(folder)
    for kind, given in (("vision", vision_model), ("text", text_model)):
        _check_complete(folder, config, kind)
        loaded = given if given is not None else _load_backbone(config, kind, folder, backbone_keywords)
        _check_same_backbone(getattr(config, f"{kind}_config"), loaded.config, kind)
        vision_model, text_model = (loaded, text_model) if kind == "vision" else (vision_model, loaded)
    model = cls(config, vision_model, text_model)
    for kind, name in ADAPTERS.items():
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            set_peft_model_state_dict(backbone, load_peft_weights(str(folder / name), device="cpu"))
    _load_head(model, folder / HEAD_FILE)
    return model.eval()


def find_folder(name_or_path: str | os.PathLike, subfolder: str = "", **hub: Any) -> Path:
    """A local folder as it is, or a Hub repository downloaded (its adapter, head and processor files only)."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        name = str(name_or_path)
        if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise FileNotFoundError(f"There is no checkpoint folder {name}: give a folder or a Hub name user/name.")
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"], **hub))
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: give a folder that DetrisForReferringSegmentation.save_pretrained wrote."
        )
    return folder


def _check_complete(folder: Path, config: DetrisConfig, kind: str) -> None:
    needed = [folder / HEAD_FILE]
    if getattr(config, ADAPTERS[kind]) is not None:
        needed.append(folder / ADAPTERS[kind] / "adapter_model.safetensors")
    for file in needed:
        if not file.is_file():
            raise FileNotFoundError(f"The checkpoint lacks {file}: copy or download it whole.")


def _load_backbone(config: DetrisConfig, kind: str, folder: Path, keywords: dict[str, Any]) -> PreTrainedModel:
    name = getattr(config, f"{kind}_name_or_path")
    if not name:
        raise ValueError(
            f"{folder / 'config.json'} names no {kind} backbone ({kind}_name_or_path is empty; the model was made "
            f"with random weights): pass a loaded one as {kind}_model=..."
        )
    if name.startswith("."):
        name = str((folder / name).resolve())
    if os.path.isabs(name) and not os.path.isdir(name):
        raise FileNotFoundError(
            f"The {kind} backbone of {folder} is gone from {name}: pass a loaded one as {kind}_model=... or mend "
            f"{kind}_name_or_path in config.json."
        )
    cls = getattr(transformers, getattr(config, f"{kind}_config").architectures[0])
    revision = getattr(config, f"{kind}_revision")
    return cls.from_pretrained(name, **({"revision": revision} if revision else {}), **keywords)


def _check_same_backbone(wanted: PreTrainedConfig, given: PreTrainedConfig, kind: str) -> None:
    for field in ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "vocab_size"):
        want, got = getattr(wanted, field, None), getattr(given, field, None)
        if want != got:
            raise ValueError(
                f"The checkpoint was trained over a {kind} encoder with {field}={want}, this one has {got}: load it "
                f"over the backbone it was trained with, or train anew with from_backbones."
            )


def _load_head(model: DetrisForReferringSegmentation, file: Path) -> None:
    """Strict both ways."""
    given, head = load_file(file), {k: v for k, v in model.head.state_dict().items()}
    wrong = sorted(given.keys() ^ head.keys()) or sorted(k for k in head if head[k].shape != given[k].shape)
    if wrong:
        raise ValueError(
            f"{file} does not fit config.json beside it: {len(wrong)} weights are missing, left over or of another "
            f"shape, among them {wrong[:3]}. Take both from the same checkpoint."
        )
    model.head.load_state_dict(given)


def trainable_state_dict(model: DetrisForReferringSegmentation) -> dict[str, torch.Tensor]:
    """What a checkpoint holds, by the model's own names: adapters and head, running statistics included."""
    prefixes = ("neck.", "decoder.", "projector.")
    state = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)}
    for kind in ADAPTERS:
        backbone = getattr(model, f"{kind}_model")
        if isinstance(backbone, PeftModel):
            adapter = get_peft_model_state_dict(backbone, save_embedding_layers=False)
            state.update({f"{kind}_model.{k}": v for k, v in adapter.items()})
    return state
