"""Convert released checkpoints to and from `DetrisForReferringSegmentation`.

A released `.pth` holds `{"state_dict": ..., "optimizer": ..., ...}` with all weights, including the frozen ones, under
`module.`. `key_mapping.official_layout` maps the keys.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights

from .. import presets
from ..atomic import atomic_write_file
from ..modeling import DetrisConfig, DetrisForReferringSegmentation
from ..safe_loading import read_checkpoint
from .key_mapping import (
    BACKBONE_PREFIXES,
    LOGIT_SCALE,
    backbone_layout,
    check_architecture,
    detect_kind,
    mismatch,
    official_layout,
)
from .weights import check_weights

CLIP_LOGIT_SCALE = math.log(100)  # OpenAI clipped it to this value in training; every released CLIP has it
_BLOCK = 64  # weights that `compare_backbone` maps at a time


def load_official_checkpoint(
    path: str | os.PathLike, config: DetrisConfig | str, *, mmap: bool = False
) -> DetrisForReferringSegmentation:
    """Load a released `.pth`, including the frozen weights, into a model in eval mode.

    The weights are not copied, so loading takes about as much memory as the size of the file.

    Args:
        path: the file. It is read with `weights_only=True`: no code in it is executed.
        config: the architecture it was trained with, or the name of a preset. The model interpolates DINOv2's position
            embeddings as in the training of the released weights (`position_interpolation="official"`).
        mmap: map the file instead of reading it, so that only the weights in use take memory. The file must not change
            during the lifetime of the model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint of this layout, weights are not finite floats, or keys are missing,
            unexpected or of a wrong shape; the message lists them and names the preset that matches.
    """
    is_preset = isinstance(config, str)
    config = presets.get(config) if isinstance(config, str) else copy.deepcopy(config)
    check_architecture(config)
    config.position_interpolation = "official"
    # The released code reads the sentence embedding at the largest token id, which is CLIP's end token. A text config
    # written by hand may have the end token of another vocabulary.
    config.text_config.eos_token_id = config.text_config.vocab_size - 1
    official = read_official(path, mmap=mmap)
    model = _empty_model(config)
    state = model.state_dict()
    layout = {mapping.official: mapping for mapping in official_layout(config)}
    problem = mismatch(official, layout, state)
    if problem:
        matching = _matching_preset(official)
        if matching is not None:
            advice = f"use the preset {matching}"
        elif is_preset:
            advice = "no preset matches, pass the config that it was trained with"
        else:
            advice = "no preset matches either"
        raise ValueError(f"{path}: expected the weights of this config, got others ({problem}); {advice}.")
    check_weights(official, path)
    # Stored for round-tripping, see `save_official_checkpoint`.
    config.text_config.logit_scale = official[LOGIT_SCALE].item()
    weights = {}
    for key, mapping in layout.items():
        weights |= {name: part.to(state[name].dtype) for name, part in mapping.split(official.pop(key)).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def save_official_checkpoint(model: DetrisForReferringSegmentation, path: str | os.PathLike) -> None:
    """Write all weights of a model, including the frozen ones, as a `.pth` that the released code loads strictly.

    The file holds a `state_dict` in float32 and no optimizer state: the released code can evaluate it, but not resume
    training. A checkpoint read by `load_official_checkpoint` round-trips exactly. CLIP's `logit_scale`, which our
    model does not use, is the one that was read (stored in `config.text_config.logit_scale`), by default ln 100,
    as in every released CLIP.

    Args:
        path: the file, written atomically.

    Raises:
        ValueError: the released code does not support this architecture; the message names the difference.
    """
    config = model.config
    layout = [*official_layout(config)]
    if config.position_interpolation != "official":
        warnings.warn(
            f"position_interpolation is {config.position_interpolation!r}: the released code interpolates DINOv2's "
            "position embeddings differently, so its masks will differ slightly from this model's.",
            stacklevel=2,
        )
    state = model.state_dict()
    difference = sorted(state.keys() ^ {name for mapping in layout for name in mapping.ours})
    if difference:
        raise ValueError(
            f"This model cannot be stored in the released layout: expected the two adapters of the config, named "
            f"'default', got {len(difference)} weights that differ, such as {', '.join(difference[:3])}; "
            "remove other adapters."
        )
    logit_scale = torch.tensor(getattr(config.text_config, "logit_scale", CLIP_LOGIT_SCALE))
    weights = {}
    for mapping in layout:
        value = mapping.join(state) if mapping.ours else logit_scale
        weights[f"module.{mapping.official}"] = value.cpu().float() if value.is_floating_point() else value.cpu()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_file(path) as temporary, temporary.open("wb") as stream:
        torch.save({"state_dict": weights}, stream)


def compare_backbone(
    path: str | os.PathLike, config: DetrisConfig, kind: str, weights: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Compare the frozen weights in a released `.pth` with those of a Hugging Face backbone.

    Args:
        path: the file. It is mapped block by block, not read.
        config: the architecture it was trained with.
        kind: `"vision"` or `"text"`.
        weights: `state_dict()` of the plain encoder; its items are removed in the comparison.

    Returns:
        The maximum absolute difference of every weight, keyed by its Hugging Face name; infinite if shapes differ or
        the backbone has no such weight.
    """
    layout, differences = [*backbone_layout(config, kind)], {}
    for start in range(0, len(layout), _BLOCK):
        # Mapped again for each block, so that the memory of the previous one is released.
        official = read_official(path, mmap=True, checksums=start == 0)
        for mapping in layout[start : start + _BLOCK]:
            for name, part in mapping.split(official[BACKBONE_PREFIXES[kind] + mapping.official]).items():
                other = weights.pop(name, torch.empty(0))
                same = part.shape == other.shape
                differences[name] = (part.float() - other.cpu().float()).abs().max().item() if same else math.inf
    return differences


def read_official(path: str | os.PathLike, *, mmap: bool = False, checksums: bool = True) -> dict[str, torch.Tensor]:
    """Read the weights of a released `.pth`, keyed by their names without `module.`.

    Args:
        mmap: map the file instead of reading it, if its format allows.
        checksums: compare the checksums in the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a released checkpoint; the message names what it contains.
    """
    expected = "a released DETRIS checkpoint"
    content = read_checkpoint(path, expected, mmap=mmap, checksums=checksums)
    if "state_dict" not in content:
        got = f"{detect_kind(content)} alone" if detect_kind(content) else 'a dict without "state_dict"'
        raise ValueError(f"{path}: expected {expected}, got {got}; pass the complete checkpoint.")
    weights = content["state_dict"]
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items()
    ):
        raise ValueError(
            f'{path}: expected {expected}, got a "state_dict" that is not a dict of tensors; pass another file.'
        )
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _empty_model(config: DetrisConfig) -> DetrisForReferringSegmentation:
    """Return a model with parameters on the meta device. Buffers are real, because not all of them are loaded."""
    with init_empty_weights(include_buffers=False):
        return DetrisForReferringSegmentation(config)


def _matching_preset(official: Mapping[str, torch.Tensor]) -> str | None:
    """Return the first preset with these keys and shapes; those that only train differently follow published ones."""
    for name in presets.list_presets():
        config = presets.get(name)
        try:
            check_architecture(config)
        except ValueError:
            continue
        layout = {mapping.official: mapping for mapping in official_layout(config)}
        same_keys = layout.keys() == official.keys()  # checked first: building a model takes time
        if same_keys and not mismatch(official, layout, _empty_model(config).state_dict()):
            return name
    return None
