"""The authors' released checkpoints in and out of this library's model.

A released `.pth` holds `{"state_dict": ..., "optimizer": ..., ...}` with every weight, the frozen ones too, under
`module.`. `official_layout` says key by key where each one goes.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights

from .. import presets
from ..modeling import DetrisConfig, DetrisForReferringSegmentation
from .key_mapping import (
    BACKBONE_PREFIXES,
    LOGIT_SCALE,
    backbone_layout,
    check_official,
    misfit,
    official_layout,
)
from .safe_loading import kind_of, read_dict

CLIP_LOGIT_SCALE = math.log(100)  # where OpenAI's training clipped it, and where it stands in every released CLIP


def load_official_checkpoint(
    path: str | os.PathLike, config: DetrisConfig | str, *, mmap: bool = False
) -> DetrisForReferringSegmentation:
    """Read a released `.pth` into a model, in eval mode, frozen weights included.

    The weights become the model's as they are read, without a second copy: the file's own size is what it takes.

    Args:
        path: the file. It is read with `weights_only=True`: no code in it is run.
        config: the architecture it was trained with, or the name of a preset. The model resamples DINOv2's position
            table as the released weights were trained with (`position_interpolation="official"`).
        mmap: map the file instead of reading it: only the weights that are looked at take memory. The file must then
            stay as it is while the model lives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this layout, or a key is missing, left over or of another shape; the message
            lists them, and names the preset that would fit.
    """
    by_name = isinstance(config, str)
    config = presets.get(config) if isinstance(config, str) else copy.deepcopy(config)
    check_official(config)
    config.position_interpolation = "official"
    # The authors take the sentence at the largest token id, which is CLIP's end token; a text config made by hand may
    # carry another vocabulary's end token.
    config.text_config.eos_token_id = config.text_config.vocab_size - 1
    given = read_official(path, mmap=mmap)
    model = _without_weights(config)
    state = model.state_dict()
    layout = {row.official: row for row in official_layout(config)}
    wrong = misfit(given, layout, state)
    if wrong:
        fitting = _fitting_presets(given)
        mend = (
            f"It fits the preset {' or '.join(fitting)}."
            if fitting
            else ("No preset fits it" + (": pass its own config." if by_name else " either."))
        )
        raise ValueError(f"{path} was not trained with this config: {wrong}. {mend}")
    # Kept for the way back, see `save_official_checkpoint`.
    config.text_config.logit_scale = given[LOGIT_SCALE].item()
    ours = {}
    for key, row in layout.items():
        ours |= {name: part.to(state[name].dtype) for name, part in row.split(given.pop(key)).items()}
    model.load_state_dict(ours, assign=True)
    return model.eval()


def save_official_checkpoint(model: DetrisForReferringSegmentation, path: str | os.PathLike) -> None:
    """Write every weight of a model, the frozen ones too, as a `.pth` that the authors' code loads with `strict=True`.

    It holds a `state_dict` in float32 and no optimizer: their test scripts read it, their training cannot resume from
    it. What `load_official_checkpoint` read comes out bit-equal. CLIP's `logit_scale`, which our model has no use for,
    is the one that was read (kept as `config.text_config.logit_scale`), else that of every released CLIP, ln 100.

    Args:
        path: the file; it appears when it is whole.

    Raises:
        ValueError: the authors' code knows no such architecture; the message names what it lacks.
    """
    config = model.config
    rows = [*official_layout(config)]
    if config.position_interpolation != "official":
        warnings.warn(
            f"position_interpolation is {config.position_interpolation!r}, and the authors' code resamples DINOv2's "
            "position table in its own way: its masks will differ a little from this model's.",
            stacklevel=2,
        )
    state = model.state_dict()
    difference = sorted(state.keys() ^ {name for row in rows for name in row.ours})
    if difference:
        raise ValueError(
            f"The released layout has no place for this model, which differs in {len(difference)} weights, among them "
            f"{', '.join(difference[:3])}: take off other adapters than the two of the config, named 'default'."
        )
    logit_scale = torch.tensor(getattr(config.text_config, "logit_scale", CLIP_LOGIT_SCALE))
    weights = {}
    for row in rows:
        value = row.join(state) if row.ours else logit_scale
        weights[f"module.{row.official}"] = value.cpu().float() if value.is_floating_point() else value.cpu()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        torch.save({"state_dict": weights}, Path(aside) / path.name)
        (Path(aside) / path.name).replace(path)


def compare_backbone(
    path: str | os.PathLike, config: DetrisConfig, kind: str, weights: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The frozen weights in a released `.pth` against those of a Hugging Face backbone.

    Args:
        path: the file, which is mapped a part at a time, not read.
        config: the architecture it was trained with.
        kind: `"vision"` or `"text"`.
        weights: `state_dict()` of the plain encoder; it is emptied on the way.

    Returns:
        For every weight, by its Hugging Face name, the greatest absolute difference; infinite where shapes differ or
        the backbone has no such weight.
    """
    rows, differences = [*backbone_layout(config, kind)], {}
    for start in range(0, len(rows), 64):
        # Mapped anew for each group, so that the pages of the one before are given back.
        given = read_official(path, mmap=True)
        for row in rows[start : start + 64]:
            for name, part in row.split(given[BACKBONE_PREFIXES[kind] + row.official]).items():
                other = weights.pop(name, torch.empty(0))
                same = part.shape == other.shape
                differences[name] = (part.float() - other.cpu().float()).abs().max().item() if same else math.inf
    return differences


def read_official(path: str | os.PathLike, *, mmap: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a released `.pth`, without `module.`.

    Args:
        mmap: map the file instead of reading it, where its format allows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file; the message says which.
    """
    weights = read_dict(Path(path), "a whole DETRIS checkpoint", mmap=mmap)
    if "state_dict" in weights:
        weights = weights["state_dict"]
    elif kind_of(weights):
        raise ValueError(f"{path} is {kind_of(weights)} alone, needed is a whole DETRIS checkpoint.")
    else:
        raise ValueError(f'{path} holds no "state_dict": needed is a checkpoint as the authors released it.')
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError(f'"state_dict" in {path} is not a dict of tensors: needed is a checkpoint as released.')
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _without_weights(config: DetrisConfig) -> DetrisForReferringSegmentation:
    """The model with parameters that take no memory; buffers, which are not all loaded, are real."""
    with init_empty_weights(include_buffers=False):
        return DetrisForReferringSegmentation(config)


def _fitting_presets(given: Mapping[str, torch.Tensor]) -> list[str]:
    found = []
    for name in presets.list():
        config = presets.get(name)
        layout = {row.official: row for row in official_layout(config)}
        if layout.keys() == given.keys() and not misfit(given, layout, _without_weights(config).state_dict()):
            found.append(name)
    return found
