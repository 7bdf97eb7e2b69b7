"""Freeze a backbone and add the adapter of a `DetrisConfig` to it, or prepare it for full tuning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..adapters.layer import execution_device
from ..adapters.registry import type_name
from ..adapters.state_dict import adapter_keys, without_wrappers
from ..errors import one_line
from .adapter_configs import QUERY_AND_VALUE, is_of_peft

# Types of peft that have defaults of their own, or need further fields.
_OTHER_TARGETS = ("IA3", "TRAINABLE_TOKENS")
# Weights that full tuning does not train, as in the paper's count, per model_type.
_NEVER_TRAINED = {"clip_text_model": "embeddings.position_embedding.weight"}


def unfreeze_backbone(backbone: PreTrainedModel) -> PreTrainedModel:
    """Make all weights of a backbone trainable, except CLIP's position table.

    Raises:
        ValueError: the backbone already has adapters, or weights that cannot be trained.
    """
    _check_plain(backbone)
    quantized = [name for name, p in backbone.named_parameters() if not p.is_floating_point()]
    if quantized:
        raise ValueError(
            f"train_backbones: expected a {backbone.config.model_type} backbone with floating-point weights, got a "
            f"quantized one ({quantized[0]}); load it without quantization, or train adapters instead."
        )
    fixed = _NEVER_TRAINED.get(backbone.config.model_type)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(fixed is None or not name.endswith(fixed))
    return backbone


def adapt_backbone(backbone: PreTrainedModel, adapter: PeftConfig | None) -> nn.Module:
    """Freeze a backbone and add new adapters, unless the adapter config is None.

    Raises:
        ValueError: the backbone already has adapters, the adapter config does not fit it, or the adapter cannot be
            saved apart from the backbone.
    """
    _check_plain(backbone)
    backbone.requires_grad_(False)
    if adapter is None:
        return backbone
    # A copy, because peft fills in target modules and other fields for this backbone.
    own = copy.deepcopy(adapter)
    own.__dict__.pop("is_from_file", None)
    own.inference_mode = False  # set in configs that peft has saved, whose adapters it freezes
    set_default_targets(own, backbone)
    linear = {name.rpartition(".")[2] for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    depth = backbone.config.num_hidden_layers
    before = {name: (p, _checksum(p)) for name, p in backbone.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*target_modules.*")  # peft warns, then raises
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # of LN tuning, for any LayerNorm
            # peft still reads a deprecated attribute of transformers; users cannot change that.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            adapted = get_peft_model(backbone, own)
        saved = set(adapter_keys(adapted, "default").values())
    except (ValueError, TypeError, AttributeError, LookupError, ImportError, RuntimeError) as error:
        # peft raises any of these for a config that does not fit a model.
        raise ValueError(_message(backbone, adapter, linear, error)) from error
    if backbone.config.num_hidden_layers != depth:
        raise ValueError(
            f"expected an adapter that keeps the {depth} blocks of the encoder, got a {type_name(adapter.peft_type)} "
            "adapter that replicates some; set layer_replication=None."
        )
    _check_can_be_saved(adapted, adapter, saved, before)
    return adapted


def set_default_targets(adapter: PeftConfig, backbone: nn.Module) -> None:
    """Set the target modules of an adapter of peft whose config has none. Changes the config.

    They are the queries and values of every block, and for LN tuning all LayerNorms. peft's own defaults do not
    cover most encoders, and use module names of earlier versions of transformers.
    """
    name = type_name(adapter.peft_type)
    is_given = any(getattr(adapter, field, None) is not None for field in ("target_modules", "target_parameters"))
    if is_given or not hasattr(adapter, "target_modules") or name in _OTHER_TARGETS or not is_of_peft(type(adapter)):
        return
    targets = QUERY_AND_VALUE
    if name == "LN_TUNING":
        targets = [key.rpartition(".")[2] for key, m in backbone.named_modules() if isinstance(m, nn.LayerNorm)]
    adapter.target_modules = set(targets)  # type: ignore[attr-defined]


def _check_plain(backbone: nn.Module) -> None:
    """Raise a ValueError if a backbone already has adapters."""
    if isinstance(backbone, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in backbone.modules()):
        raise ValueError(
            f"expected a {backbone.config.model_type} backbone without adapters, got one that already has some; pass "  # type: ignore[union-attr]
            "a freshly loaded backbone, the model adds its own adapters."
        )


def _checksum(parameter: nn.Parameter) -> tuple[int, int, str | None]:
    """Return values that differ after a change of a parameter, also after one that PyTorch does not count."""
    # As text, because NaN is not equal to itself.
    total = None if parameter.is_meta else repr(parameter.detach().sum(dtype=torch.float64).item())
    # Not `data_ptr`, which is 0 on the meta device.
    return parameter.untyped_storage()._cdata, parameter._version, total


def _message(backbone: PreTrainedModel, adapter: PeftConfig, linear: set[str], error: Exception) -> str:
    """Return the message of an adapter that does not fit a backbone; our own types describe it themselves."""
    reason = one_line(error, first_line=True)
    if not is_of_peft(type(adapter)):
        return reason
    fix = "correct its fields"
    if "feedforward_modules" in reason:
        fix = "set target_modules and feedforward_modules"
    elif "arget" in reason:  # target_modules, Target modules
        fix = f"set target_modules to modules of the encoder (its linear layers are {', '.join(sorted(linear))})"
    return (
        f"expected a {type_name(adapter.peft_type)} adapter that fits a {type(backbone).__name__}, got an error of "
        f"peft ({reason.rstrip('.')}); {fix}."
    )


def _check_can_be_saved(
    adapted: Any, adapter: PeftConfig, saved: set[str], before: dict[str, tuple[nn.Parameter, Any]]
) -> None:
    """Raise a ValueError if adding an adapter changed frozen weights, or would train weights that are not its own.

    A checkpoint contains the adapter only, so that the changed weights would be lost.
    """
    name = type_name(adapter.peft_type)
    present = {id(p) for p in adapted.parameters()}
    changed = [key for key, (p, values) in before.items() if id(p) not in present or _checksum(p) != values]
    if changed:
        raise ValueError(
            f"expected a {name} adapter that leaves the weights of the encoder as they are, got one whose "
            f"initialization changes {len(changed)} of them, such as {changed[0]}; set another initialization (for "
            "LoRA, init_lora_weights=True)."
        )
    offloaded = [key for key, p in adapted.named_parameters() if p.requires_grad and p.is_meta]
    if offloaded and execution_device(adapted).type != "meta":
        # peft puts the adapter's weights on the device of the encoder's, where they would have no values.
        raise ValueError(
            f"expected an encoder whose weights are in memory for a {name} adapter, got one that is offloaded to the "
            "CPU or the disk; load it without offloading (device_map, max_memory), or use a type of detris_peft."
        )
    trained = [key for key, p in adapted.named_parameters() if p.requires_grad and without_wrappers(key) not in saved]
    if trained or not saved:
        got = f"one that would also train {trained[0]}" if trained else "one without weights"
        raise ValueError(
            f"expected a {name} adapter that peft saves completely, got {got}; use another type or configuration."
        )
    for key, module in adapted.named_modules():
        if isinstance(module, TrainableTokensLayer) and not isinstance(module.get_base_layer(), nn.Embedding):
            raise ValueError(
                f"expected a {name} adapter of token embeddings, got one of {key}; set target_modules to the token "
                "embeddings of the text encoder, or use LORA."
            )
