"""Changes of a `DetrisConfig` by the options of the command line; see `config_options`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..adapters.config import AdapterConfig
from ..modeling import DetrisConfig
from ..modeling.adapter_configs import change_adapter, new_adapter
from ..modeling.backbone_adapters import adapt_backbone
from ..modeling.bridger_config import BridgerConfig
from ..modeling.encoders import build_backbone
from ..modeling.layers import DEFAULT_DEPTH
from ..presets.recipes import Recipe
from .config_options import ADAPTERS, BACKBONES


def apply_config_options(config: DetrisConfig, given: Mapping[str, Any]) -> DetrisConfig:
    """Return a config with the values of the given options.

    Args:
        config: the preset's config, scaled to the backbones.
        given: the options; see `given_options`.

    Raises:
        ValueError: a value is invalid, or does not fit another one.
    """
    values = {
        name: value for name, value in given.items() if name in DetrisConfig.__annotations__ and name not in BACKBONES
    }
    depths = {"vision_adapter": config.vision_config, "text_adapter": config.text_config}
    for name, encoder in depths.items():
        changes = dict(values.pop(name, None) or {})
        changes |= {
            option.partition(".")[2]: value for option, value in given.items() if option.startswith(f"{name}.")
        }
        current = getattr(config, name)
        if name in given and given[name] is None:
            values[name] = None
        elif changes and ("peft_type" in changes or current is None):
            values[name] = new_adapter(name, changes, encoder.num_hidden_layers, config.text_config.hidden_size)
        elif changes:
            values[name] = change_adapter(name, current, changes)
    if values.get("bridger") is not None:
        values["bridger"] = _bridger(config, values["bridger"])
    for name, value in values.items():
        setattr(config, name, value)
    config.validate_architecture()
    config.check_inputs()
    for name, encoder in (("vision_adapter", config.vision_config), ("text_adapter", config.text_config)):
        try:
            with torch.device("meta"):  # without memory for weights
                adapt_backbone(build_backbone(encoder), getattr(config, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return config


def recipe_fields(config: DetrisConfig, recipe: Recipe, given: Mapping[str, Any], is_new: bool) -> dict[str, Any]:
    """Return the fields of a config that a recipe sets and no option does, with their values.

    Args:
        config: the config of the model, with the given options.
        recipe: the recipe.
        given: the given options of `DetrisConfig`.
        is_new: whether the adapters are new. Otherwise their initialization does not matter.
    """
    fields: dict[str, Any] = {}
    for name in ADAPTERS if is_new else ():
        changes = given.get(name) or {}
        is_given = f"{name}.init_weights" in given or "init_weights" in changes
        if isinstance(getattr(config, name), AdapterConfig) and not is_given:
            fields[f"{name}.init_weights"] = recipe.init_weights
    if "loss_weights" not in given:
        fields["loss_weights"] = dict(recipe.loss_weights)
    return fields


def _bridger(config: DetrisConfig, changes: dict[str, Any]) -> BridgerConfig | None:
    """Return the Bridger of a config with other values of some fields; a new one if the config has none."""
    depths = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    current = config.bridger or BridgerConfig().scaled_to(depths[0], DEFAULT_DEPTH, depths[1], DEFAULT_DEPTH)
    return BridgerConfig.from_value({**current.to_dict(), **changes})
