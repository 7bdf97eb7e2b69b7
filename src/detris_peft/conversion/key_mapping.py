"""Mapping of state-dict keys between the released checkpoints and `DetrisForReferringSegmentation`.

The modules of the released code are `txt_backbone` (CLIP's text encoder), `dinov2`, `neck`, `decoder` and `proj` (the
projector).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling import DetrisConfig
from ..modeling.adapter_configs import DEFAULT_TYPES
from ..modeling.encoders import architecture

BACKBONE_PREFIXES = {"vision": "dinov2.", "text": "txt_backbone."}
LOGIT_SCALE = "txt_backbone.logit_scale"  # only used in CLIP's pretraining; the one weight that our model lacks


def detect_kind(content: Mapping[str, Any]) -> str:
    """Return what a checkpoint contains, judging by its keys; empty if unknown."""
    if "state_dict" in content:
        return "a training checkpoint"
    if {"cls_token", "pos_embed"} <= content.keys():
        return "a DINO backbone"
    return "a CLIP" if {"token_embedding.weight", "text_projection"} <= content.keys() else ""


@dataclass(frozen=True)
class KeyMapping:
    """A weight of a released checkpoint and the weights of our model that it consists of.

    Attributes:
        official: key in the released checkpoint, without `module.`.
        ours: keys in our model, whose weights are concatenated along the first axis; empty if our model lacks it.
        transposed: whether the first two axes are swapped.
    """

    official: str
    ours: tuple[str, ...]
    transposed: bool = False

    def split(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """Convert a released weight to the weights of our model. Parts do not share memory."""
        value = value.transpose(0, 1).contiguous() if self.transposed else value
        if len(self.ours) < 2:
            return dict.fromkeys(self.ours, value)
        return {name: part.clone() for name, part in zip(self.ours, value.chunk(len(self.ours)), strict=True)}

    def join(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Convert weights of our model to the released weight: the inverse of `split`."""
        parts = [state[name].detach() for name in self.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return value.transpose(0, 1).contiguous() if self.transposed else value


def official_layout(config: DetrisConfig) -> Iterator[KeyMapping]:
    """Yield the mapping of every key of a released checkpoint of this architecture.

    Raises:
        ValueError: the released code does not support this architecture; the message names the field.
    """
    check_architecture(config)
    yield from _text_encoder(config)
    yield from _image_encoder(config)
    yield from _neck(config)
    yield from _decoder(config)
    yield from _projector()


def backbone_layout(config: DetrisConfig, kind: str) -> Iterator[KeyMapping]:
    """Yield the mapping from the keys of a backbone's original file to those of the plain Hugging Face model.

    The released checkpoints contain the backbones under their original keys, with a prefix.

    Args:
        kind: `"vision"` for DINOv2 with registers, `"text"` for CLIP's text encoder.
    """
    plain = copy.copy(config)
    plain.vision_adapter = plain.text_adapter = None
    check_architecture(plain)
    mappings = _image_encoder(plain) if kind == "vision" else _text_encoder(plain)
    for mapping in mappings:
        ours = tuple(name.removeprefix(f"{kind}_model.") for name in mapping.ours)
        yield KeyMapping(mapping.official.removeprefix(BACKBONE_PREFIXES[kind]), ours, mapping.transposed)


def check_architecture(config: DetrisConfig) -> None:
    """Raise a ValueError if the released code does not support this architecture."""
    vision, text = config.vision_config, config.text_config
    if vision.model_type != "dinov2_with_registers" or vision.use_swiglu_ffn:
        raise ValueError(
            f"vision_config: expected DINOv2 with registers (S, B or L), got {vision.model_type}; "
            "the released layout has no other image encoder."
        )
    if architecture(text) != "CLIPTextModelWithProjection":
        raise ValueError(
            f"text_config: expected CLIP's text encoder, CLIPTextModelWithProjection, got {architecture(text)}; "
            "the released layout has no other text encoder."
        )
    if text.hidden_size != config.hidden_dim:
        raise ValueError(
            f"hidden_dim: expected the width of the text encoder, {text.hidden_size}, got {config.hidden_dim}; "
            "the released decoder does not project the words."
        )
    if config.bridger is not None:
        raise ValueError("bridger: expected None, got a Bridger; the released layout has no Bridger.")
    for name in ("vision_adapter", "text_adapter"):
        expected: Any = DEFAULT_TYPES[name]
        adapter: Any = getattr(config, name)
        if adapter is not None and type(adapter) is not expected:  # a subclass may have other weights
            raise ValueError(
                f"{name}: expected a {expected.__name__}, got a {type(adapter).__name__}; the released layout has no "
                "other adapters."
            )
        if adapter is not None and isinstance(adapter.target_modules, str):
            raise ValueError(
                f"{name}.target_modules: expected None, got a regular expression; the released layout needs the "
                "blocks in layers_to_transform."
            )


def _adapted_layers(adapter: Any, depth: int) -> list[int]:
    if adapter is None:
        return []
    layers = adapter.layers_to_transform
    if layers is None:
        return [*range(depth)]
    return [layers] if isinstance(layers, int) else layers


def _weight_and_bias(official: str, ours: str) -> Iterator[KeyMapping]:
    for leaf in ("weight", "bias"):
        yield KeyMapping(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _batch_norm(official: str, ours: str) -> Iterator[KeyMapping]:
    for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield KeyMapping(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _attention(official: str, ours: str) -> Iterator[KeyMapping]:
    for leaf in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        yield KeyMapping(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _text_encoder(config: DetrisConfig) -> Iterator[KeyMapping]:
    official = "txt_backbone."
    ours = "text_model." if config.text_adapter is None else "text_model.base_model.model."
    encoder = ours + "text_model."  # CLIPTextModelWithProjection consists of the encoder and the projection
    yield KeyMapping(official + "positional_embedding", (encoder + "embeddings.position_embedding.weight",))
    yield KeyMapping(official + "token_embedding.weight", (encoder + "embeddings.token_embedding.weight",))
    yield KeyMapping(official + "text_projection", (ours + "text_projection.weight",), transposed=True)
    yield KeyMapping(LOGIT_SCALE, ())
    yield from _weight_and_bias(official + "ln_final", encoder + "final_layer_norm")
    depth = config.text_config.num_hidden_layers
    adapted = _adapted_layers(config.text_adapter, depth)
    for i in range(depth):
        block, layer = f"{official}transformer.resblocks.{i}.", f"{encoder}encoder.layers.{i}."
        for leaf in ("weight", "bias"):
            qkv = tuple(f"{layer}self_attn.{x}_proj.{leaf}" for x in "qkv")
            yield KeyMapping(f"{block}attn.in_proj_{leaf}", qkv)
        yield from _weight_and_bias(block + "attn.out_proj", layer + "self_attn.out_proj")
        yield from _weight_and_bias(block + "ln_1", layer + "layer_norm1")
        yield from _weight_and_bias(block + "ln_2", layer + "layer_norm2")
        mlp = layer + ("mlp.base_layer." if i in adapted else "mlp.")
        yield from _weight_and_bias(block + "mlp.c_fc", mlp + "fc1")
        yield from _weight_and_bias(block + "mlp.c_proj", mlp + "fc2")
        if i in adapted:
            yield from _adapter(block + "adapter.", layer + "mlp.text_adapter_branches.default.")


def _image_encoder(config: DetrisConfig) -> Iterator[KeyMapping]:
    official = "dinov2."
    ours = "vision_model." if config.vision_adapter is None else "vision_model.base_model.model."
    for official_name, name in (
        ("cls_token", "cls_token"),
        ("pos_embed", "position_embeddings"),
        ("register_tokens", "register_tokens"),
        ("mask_token", "mask_token"),
    ):
        yield KeyMapping(official + official_name, (f"{ours}embeddings.{name}",))
    yield from _weight_and_bias(official + "patch_embed.proj", ours + "embeddings.patch_embeddings.projection")
    yield from _weight_and_bias(official + "norm", ours + "layernorm")
    depth = config.vision_config.num_hidden_layers
    adapted = _adapted_layers(config.vision_adapter, depth)
    for i in range(depth):
        block, layer = f"{official}blocks.{i}.", f"{ours}encoder.layer.{i}."
        yield from _weight_and_bias(block + "norm1", layer + "norm1")
        yield from _weight_and_bias(block + "norm2", layer + "norm2")
        for leaf in ("weight", "bias"):
            yield KeyMapping(f"{block}attn.qkv.{leaf}", tuple(f"{layer}attention.{x}_proj.{leaf}" for x in "qkv"))
        yield from _weight_and_bias(block + "attn.proj", layer + "attention.o_proj")
        yield KeyMapping(block + "ls1.gamma", (layer + "layer_scale1.lambda1",))
        yield KeyMapping(block + "ls2.gamma", (layer + "layer_scale2.lambda1",))
        mlp = layer + ("mlp.base_layer." if i in adapted else "mlp.")
        yield from _weight_and_bias(block + "mlp.fc1", mlp + "fc1")
        yield from _weight_and_bias(block + "mlp.fc2", mlp + "fc2")
        if i in adapted:
            branch = layer + "mlp.dense_aligner_branches.default."
            yield from _adapter(block + "adapter.", branch)
            yield from _attention(block + "adapter.cross.multihead_attn", branch + "cross.attention")
            yield from _weight_and_bias(block + "adapter.cross.image_proj", branch + "cross.query")
            yield from _weight_and_bias(block + "adapter.cross.text_proj", branch + "cross.key_value")
            yield from _weight_and_bias(block + "adapter.cross.back_proj", branch + "cross.output")


def _adapter(official: str, ours: str) -> Iterator[KeyMapping]:
    yield from _weight_and_bias(official + "D_fc1", ours + "down")
    yield from _weight_and_bias(official + "D_fc2", ours + "up")
    for official_name, name in (
        ("dense_branch1", "branch1"),
        ("dense_branch2.0", "branch3.0"),
        ("dense_branch2.1", "branch3.1"),
        ("dense_branch3.0", "branch5.0"),
        ("dense_branch3.1", "branch5.1"),
    ):
        yield from _weight_and_bias(f"{official}{official_name}.conv", f"{ours}dmoc.{name}.0")
        yield from _batch_norm(f"{official}{official_name}.bn", f"{ours}dmoc.{name}.1")


def _head_block(official: str, ours: str, transposed: bool = False) -> Iterator[KeyMapping]:
    yield KeyMapping(f"{official}.0.weight", (f"{ours}.0.weight",), transposed)
    yield from _batch_norm(f"{official}.1", f"{ours}.1")


def _neck(config: DetrisConfig) -> Iterator[KeyMapping]:
    for i in range(len(config.extract_layers) + 1):
        yield from _attention(f"neck.fusion{i + 3}.multihead_attn", f"neck.gates.{i}.attention")
        # The last one is stored as a transposed convolution, equivalent for a 1×1 kernel.
        yield from _head_block(
            f"neck.f{i + 3}_proj", f"neck.tap_projs.{i}", transposed=i == len(config.extract_layers)
        )
    yield from _weight_and_bias("neck.txt_proj", "neck.sentence_proj")
    yield from _head_block("neck.aggr", "neck.fuse")
    yield from _head_block("neck.coordconv.0.conv1", "neck.locate.0")
    yield from _head_block("neck.coordconv.1", "neck.locate.1")


def _decoder(config: DetrisConfig) -> Iterator[KeyMapping]:
    for i in range(config.decoder_layers):
        layer = f"decoder.layers.{i}."
        for norm in ("norm1", "norm2", "norm3"):
            yield from _weight_and_bias(layer + norm, layer + norm)
        yield from _weight_and_bias(layer + "self_attn_norm", layer + "self_attention_norm")
        yield from _weight_and_bias(layer + "cross_attn_norm", layer + "cross_attention_norm")
        yield from _attention(layer + "self_attn", layer + "self_attention")
        yield from _attention(layer + "multihead_attn", layer + "cross_attention")
        for j in (0, 3, 4):
            yield from _weight_and_bias(f"{layer}ffn.{j}", f"{layer}ffn.{j}")
    yield from _weight_and_bias("decoder.norm", "decoder.norm")


def _projector() -> Iterator[KeyMapping]:
    yield from _head_block("proj.vis.1", "projector.upsample1")
    yield from _head_block("proj.vis.3", "projector.upsample2")
    yield from _weight_and_bias("proj.vis.4", "projector.pixel_proj")
    yield from _weight_and_bias("proj.txt", "projector.sentence_proj")


# -- comparing --------------------------------------------------------------------------------------------------------


def mismatch(
    weights: Mapping[str, torch.Tensor], layout: dict[str, KeyMapping], state: Mapping[str, torch.Tensor]
) -> str:
    """Describe how released weights differ from a layout in keys, or else in shapes; empty if they match.

    Args:
        weights: released weights.
        layout: the expected mappings, keyed by released key.
        state: `state_dict()` of our model.
    """
    missing, unexpected = sorted(layout.keys() - weights.keys()), sorted(weights.keys() - layout.keys())
    if missing or unexpected:
        return f"missing keys: {_preview(missing)}; unexpected keys: {_preview(unexpected)}"
    wrong = []
    for key, mapping in layout.items():
        parts = {name: state[name].to("meta") for name in mapping.ours}
        expected = mapping.join(parts).shape if parts else torch.Size()
        if weights[key].shape != expected:
            wrong.append(f"{key}: expected {tuple(expected)}, got {tuple(weights[key].shape)}")
    return f"shapes differ: {_preview(wrong)}" if wrong else ""


def _preview(names: list[str]) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} ({shown})" if names else "none"
