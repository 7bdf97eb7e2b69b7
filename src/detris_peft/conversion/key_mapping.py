"""The authors' released checkpoints, key by key: where each of their weights goes in this library's model.

Their modules are called `txt_backbone` (CLIP's text encoder), `dinov2`, `neck`, `decoder` and `proj` (the projector).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ..adapters.config import ParallelAdapterConfig
from ..modeling import DetrisConfig
from ..modeling.encoders import architecture

BACKBONE_PREFIXES = {"vision": "dinov2.", "text": "txt_backbone."}
LOGIT_SCALE = "txt_backbone.logit_scale"  # of CLIP's own training; the one weight that our model has no place for


@dataclass(frozen=True)
class Row:
    """One weight of the released layout.

    Attributes:
        official: its key, without `module.`.
        ours: the weights of our model it is made of, stacked along the first axis; none where we have no use for it.
        transposed: whether the first two axes are swapped.
    """

    official: str
    ours: tuple[str, ...]
    transposed: bool = False

    def split(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The released weight as ours; parts get memory of their own."""
        value = value.transpose(0, 1).contiguous() if self.transposed else value
        if len(self.ours) < 2:
            return dict.fromkeys(self.ours, value)
        return {name: part.clone() for name, part in zip(self.ours, value.chunk(len(self.ours)), strict=True)}

    def join(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Ours as the released weight: the inverse of `split`."""
        parts = [state[name].detach() for name in self.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return value.transpose(0, 1).contiguous() if self.transposed else value


def official_layout(config: DetrisConfig) -> Iterator[Row]:
    """Every key of a released checkpoint of this architecture, and where it goes.

    Raises:
        ValueError: the authors' code knows no such architecture; the message names the field.
    """
    check_official(config)
    yield from _text_encoder(config)
    yield from _image_encoder(config)
    yield from _neck(config)
    yield from _decoder(config)
    yield from _projector()


def backbone_layout(config: DetrisConfig, kind: str) -> Iterator[Row]:
    """The keys of a backbone's own original file, and where each goes in the plain Hugging Face backbone.

    The released checkpoints hold the backbones under their original keys; only the prefixes differ.

    Args:
        kind: `"vision"` for DINOv2 with registers, `"text"` for CLIP's text encoder.
    """
    plain = copy.copy(config)
    plain.vision_adapter = plain.text_adapter = None
    check_official(plain)
    rows = _image_encoder(plain) if kind == "vision" else _text_encoder(plain)
    for row in rows:
        ours = tuple(name.removeprefix(f"{kind}_model.") for name in row.ours)
        yield Row(row.official.removeprefix(BACKBONE_PREFIXES[kind]), ours, row.transposed)


def check_official(config: DetrisConfig) -> None:
    """Refuse what the authors' code cannot be."""
    vision, text = config.vision_config, config.text_config
    if vision.model_type != "dinov2_with_registers" or vision.use_swiglu_ffn:
        raise ValueError(
            f"vision_config is a {vision.model_type}: the released layout is of DINOv2 with registers (S, B or L)."
        )
    if architecture(text) != "CLIPTextModelWithProjection":
        raise ValueError(
            f"text_config is a {architecture(text)}: the released layout is of CLIP's text encoder, "
            "CLIPTextModelWithProjection."
        )
    if text.hidden_size != config.hidden_dim:
        raise ValueError(
            f"hidden_dim={config.hidden_dim}, but the text encoder is {text.hidden_size} wide: the authors' decoder "
            "takes words as wide as itself."
        )
    for name in ("vision_adapter", "text_adapter"):
        adapter = getattr(config, name)
        if adapter is not None and isinstance(adapter.target_modules, str):
            raise ValueError(
                f"{name}.target_modules is a regular expression: for the released layout name the blocks in "
                "layers_to_transform."
            )


def _adapted(adapter: ParallelAdapterConfig | None, depth: int) -> list[int]:
    if adapter is None:
        return []
    layers = adapter.layers_to_transform
    if layers is None:
        return [*range(depth)]
    return [layers] if isinstance(layers, int) else layers


def _pair(official: str, ours: str) -> Iterator[Row]:
    for leaf in ("weight", "bias"):
        yield Row(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _batch_norm(official: str, ours: str) -> Iterator[Row]:
    for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield Row(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _attention(official: str, ours: str) -> Iterator[Row]:
    for leaf in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        yield Row(f"{official}.{leaf}", (f"{ours}.{leaf}",))


def _text_encoder(config: DetrisConfig) -> Iterator[Row]:
    them, us = "txt_backbone.", "text_model." if config.text_adapter is None else "text_model.base_model.model."
    inner = us + "text_model."  # CLIPTextModelWithProjection: the encoder, and the projection beside it
    yield Row(them + "positional_embedding", (inner + "embeddings.position_embedding.weight",))
    yield Row(them + "token_embedding.weight", (inner + "embeddings.token_embedding.weight",))
    yield Row(them + "text_projection", (us + "text_projection.weight",), transposed=True)
    yield Row(LOGIT_SCALE, ())
    yield from _pair(them + "ln_final", inner + "final_layer_norm")
    depth = config.text_config.num_hidden_layers
    adapted = _adapted(config.text_adapter, depth)
    for i in range(depth):
        block, ours = f"{them}transformer.resblocks.{i}.", f"{inner}encoder.layers.{i}."
        for leaf in ("weight", "bias"):
            qkv = tuple(f"{ours}self_attn.{x}_proj.{leaf}" for x in "qkv")
            yield Row(f"{block}attn.in_proj_{leaf}", qkv)
        yield from _pair(block + "attn.out_proj", ours + "self_attn.out_proj")
        yield from _pair(block + "ln_1", ours + "layer_norm1")
        yield from _pair(block + "ln_2", ours + "layer_norm2")
        mlp = ours + ("mlp.base_layer." if i in adapted else "mlp.")
        yield from _pair(block + "mlp.c_fc", mlp + "fc1")
        yield from _pair(block + "mlp.c_proj", mlp + "fc2")
        if i in adapted:
            yield from _adapter(block + "adapter.", ours + "mlp.text_adapter_branches.default.")


def _image_encoder(config: DetrisConfig) -> Iterator[Row]:
    them, us = "dinov2.", "vision_model." if config.vision_adapter is None else "vision_model.base_model.model."
    for official, ours in (
        ("cls_token", "cls_token"),
        ("pos_embed", "position_embeddings"),
        ("register_tokens", "register_tokens"),
        ("mask_token", "mask_token"),
    ):
        yield Row(them + official, (f"{us}embeddings.{ours}",))
    yield from _pair(them + "patch_embed.proj", us + "embeddings.patch_embeddings.projection")
    yield from _pair(them + "norm", us + "layernorm")
    depth = config.vision_config.num_hidden_layers
    adapted = _adapted(config.vision_adapter, depth)
    for i in range(depth):
        block, ours = f"{them}blocks.{i}.", f"{us}encoder.layer.{i}."
        yield from _pair(block + "norm1", ours + "norm1")
        yield from _pair(block + "norm2", ours + "norm2")
        for leaf in ("weight", "bias"):
            yield Row(f"{block}attn.qkv.{leaf}", tuple(f"{ours}attention.{x}_proj.{leaf}" for x in "qkv"))
        yield from _pair(block + "attn.proj", ours + "attention.o_proj")
        yield Row(block + "ls1.gamma", (ours + "layer_scale1.lambda1",))
        yield Row(block + "ls2.gamma", (ours + "layer_scale2.lambda1",))
        mlp = ours + ("mlp.base_layer." if i in adapted else "mlp.")
        yield from _pair(block + "mlp.fc1", mlp + "fc1")
        yield from _pair(block + "mlp.fc2", mlp + "fc2")
        if i in adapted:
            branch = ours + "mlp.dense_aligner_branches.default."
            yield from _adapter(block + "adapter.", branch)
            yield from _attention(block + "adapter.cross.multihead_attn", branch + "cross.attention")
            yield from _pair(block + "adapter.cross.image_proj", branch + "cross.query")
            yield from _pair(block + "adapter.cross.text_proj", branch + "cross.key_value")
            yield from _pair(block + "adapter.cross.back_proj", branch + "cross.output")


def _adapter(official: str, ours: str) -> Iterator[Row]:
    yield from _pair(official + "D_fc1", ours + "down")
    yield from _pair(official + "D_fc2", ours + "up")
    for them, us in (
        ("dense_branch1", "branch1"),
        ("dense_branch2.0", "branch3.0"),
        ("dense_branch2.1", "branch3.1"),
        ("dense_branch3.0", "branch5.0"),
        ("dense_branch3.1", "branch5.1"),
    ):
        yield from _pair(f"{official}{them}.conv", f"{ours}dmoc.{us}.0")
        yield from _batch_norm(f"{official}{them}.bn", f"{ours}dmoc.{us}.1")


def _head_block(official: str, ours: str, transposed: bool = False) -> Iterator[Row]:
    yield Row(f"{official}.0.weight", (f"{ours}.0.weight",), transposed)
    yield from _batch_norm(f"{official}.1", f"{ours}.1")


def _neck(config: DetrisConfig) -> Iterator[Row]:
    for i in range(len(config.extract_layers) + 1):
        yield from _attention(f"neck.fusion{i + 3}.multihead_attn", f"neck.gates.{i}.attention")
        # The last is stored as a transposed convolution; with a 1×1 kernel that is the same map.
        yield from _head_block(
            f"neck.f{i + 3}_proj", f"neck.tap_projs.{i}", transposed=i == len(config.extract_layers)
        )
    yield from _pair("neck.txt_proj", "neck.sentence_proj")
    yield from _head_block("neck.aggr", "neck.fuse")
    yield from _head_block("neck.coordconv.0.conv1", "neck.locate.0")
    yield from _head_block("neck.coordconv.1", "neck.locate.1")


def _decoder(config: DetrisConfig) -> Iterator[Row]:
    for i in range(config.decoder_layers):
        them = us = f"decoder.layers.{i}."
        for norm in ("norm1", "norm2", "norm3"):
            yield from _pair(them + norm, us + norm)
        yield from _pair(them + "self_attn_norm", us + "self_attention_norm")
        yield from _pair(them + "cross_attn_norm", us + "cross_attention_norm")
        yield from _attention(them + "self_attn", us + "self_attention")
        yield from _attention(them + "multihead_attn", us + "cross_attention")
        for j in (0, 3, 4):
            yield from _pair(f"{them}ffn.{j}", f"{us}ffn.{j}")
    yield from _pair("decoder.norm", "decoder.norm")


def _projector() -> Iterator[Row]:
    yield from _head_block("proj.vis.1", "projector.upsample1")
    yield from _head_block("proj.vis.3", "projector.upsample2")
    yield from _pair("proj.vis.4", "projector.pixel_proj")
    yield from _pair("proj.txt", "projector.sentence_proj")


# -- comparing --------------------------------------------------------------------------------------------------------


def misfit(given: Mapping[str, torch.Tensor], layout: dict[str, Row], state: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with the keys, else with the shapes; empty if nothing is."""
    missing, unexpected = sorted(layout.keys() - given.keys()), sorted(given.keys() - layout.keys())
    if missing or unexpected:
        return f"missing: {_some(missing)}; left over: {_some(unexpected)}"
    wrong = []
    for key, row in layout.items():
        needed = row.join({name: state[name].to("meta") for name in row.ours}).shape if row.ours else torch.Size()
        if given[key].shape != needed:
            wrong.append(f"{key} is {tuple(given[key].shape)}, needed {tuple(needed)}")
    return f"sizes differ: {_some(wrong)}" if wrong else ""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} ({shown})" if names else "none"
