"""Lets `transformers.Trainer` load checkpoints, for `resume_from_checkpoint` and `load_best_model_at_end`.

`Trainer` does not call `from_pretrained`: it reads an index that says which file contains which weight, and passes the
content of each file to `load_state_dict`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ...adapters.state_dict import adapter_keys, adapter_state_dict, load_adapter_state_dict, persistent_names
from .files import ADAPTER_FILE, ADAPTERS, BACKBONE_FILE, BACKBONES, HEAD_FILE, INDEX_FILE
from .weights import selected_adapters


def write_index(folder: Path, model: Any, adapters: Mapping[str, str]) -> None:
    """Write the index of a checkpoint.

    Args:
        folder: the checkpoint.
        model: a [`DetrisForReferringSegmentation`].
        adapters: names of the saved adapters: kind of backbone → name.
    """
    files = dict.fromkeys(model.head_keys, HEAD_FILE)
    for kind, name in adapters.items():
        keys = adapter_keys(getattr(model, f"{kind}_model"), name).values()
        files |= {f"{kind}_model.{key}": f"{ADAPTERS[kind]}/{ADAPTER_FILE}" for key in keys}
    for kind, name in BACKBONES.items() if model.config.train_backbones else ():
        keys = persistent_names(getattr(model, f"{kind}_model"))
        files |= {f"{kind}_model.{key}": f"{name}/{BACKBONE_FILE}" for key in keys}
    content = {"metadata": {}, "weight_map": files}
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class LoadsCheckpointFiles(nn.Module):
    """Base of the model, whose `load_state_dict` also accepts the content of one file of a checkpoint."""

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights under the model's keys or, with `strict=False`, the content of a file of a checkpoint.

        Raises:
            ValueError: the adapter's file does not fit an active adapter.
        """
        config: Any = self.config
        for kind in BACKBONES if config.train_backbones and not strict and state_dict else ():
            backbone = getattr(self, f"{kind}_model")
            if set(persistent_names(backbone)) == state_dict.keys():
                return backbone.load_state_dict(state_dict, strict=True, assign=assign)
        if strict or not state_dict or not all(key.startswith("base_model.") for key in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        adapters = selected_adapters(self)
        keys = {kind: adapter_keys(getattr(self, f"{kind}_model"), name).keys() for kind, name in adapters.items()}
        fitting = [kind for kind in keys if keys[kind] == state_dict.keys()]
        if len(fitting) > 1:  # encoders with the same names of modules, as those of CLIP
            given = _shapes(state_dict)
            fitting = [kind for kind in fitting if _shapes(_own(self, kind, adapters[kind])) == given]
        if len(fitting) > 1:
            raise ValueError(
                "load_state_dict: expected weights that fit one of the active adapters, got some that fit both, whose "
                "encoders have the same modules and sizes; load the checkpoint with from_pretrained, or train with "
                "detris_peft.training."
            )
        if not fitting:
            raise ValueError(
                f"load_state_dict: expected the weights of one of the active adapters ({', '.join(adapters)}), got "
                f"{len(state_dict)} others, such as {next(iter(state_dict))}; load the checkpoint with "
                "from_pretrained."
            )
        (kind,) = fitting
        load_adapter_state_dict(getattr(self, f"{kind}_model"), adapters[kind], state_dict, f"{kind}_adapter")
        return _IncompatibleKeys([], [])


def _own(model: Any, kind: str, adapter_name: str) -> dict[str, torch.Tensor]:
    return adapter_state_dict(getattr(model, f"{kind}_model"), adapter_name)


def _shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state_dict.items()}
