"""Tiny models over saved backbones, and what is compared of their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.tiny_models import inputs, perturb, tiny_config


def make(backbones: Path, **changes) -> DetrisForReferringSegmentation:
    """Return a model with changed weights over `backbones/vision` and `backbones/text`, in eval mode."""
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(backbones / "text")
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config(**changes))
    perturb(model)
    return model.eval()


def logits(model) -> torch.Tensor:
    """Return the logits of fixed inputs."""
    batch = inputs()
    with torch.no_grad():
        return model(batch["pixel_values"], batch["input_ids"]).logits


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
