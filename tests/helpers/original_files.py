"""Backbones in the format of their original files."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from detris_peft import DetrisConfig
from detris_peft.conversion.key_mapping import backbone_layout


def original_weights(model: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Return the weights of a `"vision"` or `"text"` backbone under the keys of its original file."""
    config = copy.deepcopy(model.config)  # DetrisConfig changes the configs that it is given
    if kind == "vision":
        fields = {"vision_config": config, "image_size": config.image_size}
    else:
        fields = {"text_config": config, "hidden_dim": 64, "max_text_length": config.max_position_embeddings}
    layout = backbone_layout(DetrisConfig(**fields, vision_adapter=None, decoder_heads=1), kind)
    state = model.state_dict()
    return {m.official: m.join(state) if m.ours else torch.tensor(4.6) for m in layout}


def write_torchscript(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write a TorchScript archive whose modules hold these weights."""

    class Holder(nn.Module):
        def forward(self, x):
            return x

    root = Holder()
    for key, value in weights.items():
        *parents, leaf = key.split(".")
        module = root
        for name in parents:
            if name not in dict(module.named_children()):
                module.add_module(name, Holder())
            module = module.get_submodule(name)
        module.register_buffer(leaf, value)
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), path)
