"""Numbers of trained and frozen parameters per part of a model, as the paper's tables count them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .configuration_detris import DetrisConfig
from .modeling_detris import DetrisForReferringSegmentation

_HEAD = ("neck", "decoder", "projector")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters per part of a model. Buffers, such as BatchNorm statistics, are not counted.

    Attributes:
        vision_adapter: trained parameters of the image encoder's adapter.
        text_adapter: trained parameters of the text encoder's adapter.
        bridger: trained parameters of the Bridger.
        backbones: trained parameters of the encoders themselves (full tuning).
        neck, decoder, projector: trained parameters of the head.
        frozen: all other parameters.
    """

    vision_adapter: int = 0
    text_adapter: int = 0
    bridger: int = 0
    backbones: int = 0
    neck: int = 0
    decoder: int = 0
    projector: int = 0
    frozen: int = 0

    @property
    def backbone_update(self) -> int:
        """Trained parameters outside the head: "Backbone params" in Table 2 of the paper."""
        return self.vision_adapter + self.text_adapter + self.bridger + self.backbones

    @property
    def head(self) -> int:
        """Trained parameters of the head: neck, decoder and projector."""
        return self.neck + self.decoder + self.projector

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.backbone_update + self.head

    @property
    def total(self) -> int:
        """All parameters."""
        return self.trained + self.frozen


def count_parameters(model: DetrisForReferringSegmentation) -> ParameterCounts:
    """Count the parameters of a model. A parameter that several modules share is counted once.

    Args:
        model: the model; it may be on the meta device.

    Raises:
        ValueError: a trained parameter belongs to no part of the model.
    """
    encoders = {"vision_model": "vision_adapter", "text_model": "text_adapter"}
    if model.config.train_backbones:
        encoders = dict.fromkeys(encoders, "backbones")
    parts = {**encoders, "bridger": "bridger", **{name: name for name in _HEAD}}
    counts = dict.fromkeys((*parts.values(), "frozen"), 0)
    for name, parameter in model.named_parameters():
        part = parts.get(name.partition(".")[0]) if parameter.requires_grad else "frozen"
        if part is None:
            raise ValueError(
                f"{name}: expected a parameter of the encoders, the Bridger or the head, got another one that is "
                "trained; freeze or remove it."
            )
        counts[part] += parameter.numel()
    return ParameterCounts(**counts)


def meta_model(config: DetrisConfig) -> DetrisForReferringSegmentation:
    """Create a model on the meta device: modules without memory for weights. Nothing is loaded.

    Raises:
        ValueError: an adapter does not fit its encoder.
    """
    with torch.device("meta"):
        return DetrisForReferringSegmentation(config)
