"""The authors' released checkpoints in and out of this library's model.

A released `.pth` holds `{"state_dict": ..., "optimizer": ..., ...}` with every weight, the frozen ones too, under
`module.`. `official_layout` says key by key where each one goes.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import presets
from .adapters.plugin import ParallelAdapterConfig
from .modeling import DetrisConfig, DetrisForReferringSegmentation


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
        """The released weight as ours."""
        value = value.transpose(0, 1) if self.transposed else value
        parts = value.chunk(len(self.ours)) if len(self.ours) > 1 else (value,) * len(self.ours)
        return {name: part.contiguous() for name, part in zip(self.ours, parts, strict=True)}


def load_official_checkpoint(path: str | os.PathLike, config: DetrisConfig | str) -> DetrisForReferringSegmentation:
    """Read a released `.pth` into a model, in eval mode, frozen weights included.

    Args:
        path: the file. It is read with `weights_only=True`: no code in it is run.
        config: the architecture it was trained with, or the name of a preset. The model resamples DINOv2's position
            table as the released weights were trained with (`position_interpolation="official"`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this layout, or a key is missing, left over or of another shape; the message
            lists them.
    """
    config = presets.get(config) if isinstance(config, str) else copy.deepcopy(config)
    config.position_interpolation = "official"
    # The authors take the sentence at the largest token id, which is CLIP's end token; a text config made by hand may
    # carry another vocabulary's end token.
    config.text_config.eos_token_id = config.text_config.vocab_size - 1
    given = read_official(path)
    model = DetrisForReferringSegmentation(config)
    state = model.state_dict()
    layout = {row.official: row for row in official_layout(config)}
    _check_keys(given, layout, path)
    _check_shapes(given, layout, state, path)
    model.load_state_dict({k: v for key, row in layout.items() for k, v in row.split(given[key]).items()})
    return model.eval()


def read_official(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The weights of a released `.pth`, without `module.`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint, or it holds pickled code, which is never run: {str(error).splitlines()[0]}"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint (truncated, or another kind of file): "
            f"{str(error).splitlines()[0]}"
        ) from None
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f'{path} holds no "state_dict": needed is a checkpoint as the authors released it.')
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _check_keys(given: dict, layout: dict[str, Row], path: str | os.PathLike) -> None:
    missing, unexpected = sorted(layout.keys() - given.keys()), sorted(given.keys() - layout.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} was not trained with this config: {len(missing)} keys are missing ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}), {len(unexpected)} are left over ({', '.join(unexpected[:5])}"
            f"{', ...' if len(unexpected) > 5 else ''}). Pass the config or preset it was trained with."
        )


def _check_shapes(given: dict, layout: dict[str, Row], state: dict, path: str | os.PathLike) -> None:
    wrong = []
    for key, row in layout.items():
        for name, value in row.split(given[key]).items():
            if value.shape != state[name].shape:
                wrong.append(f"{key} is {tuple(given[key].shape)}, our {name} {tuple(state[name].shape)}")
    if wrong:
        raise ValueError(
            f"{path} was trained with other sizes than this config's; {len(wrong)} weights differ: "
            f"{'; '.join(wrong[:3])}. Pass the config or preset it was trained with."
        )


# -- the layout -------------------------------------------------------------------------------------------------------


def official_layout(config: DetrisConfig) -> Iterator[Row]:
    """Every key of a released checkpoint of this architecture, and where it goes."""
    yield from _text_encoder(config)
    yield from _image_encoder(config)
    yield from _neck(config)
    yield from _decoder(config)
    yield from _projector()


def _adapted(adapter: ParallelAdapterConfig | None) -> list[int]:
    layers = None if adapter is None else adapter.layers_to_transform
    return [layers] if isinstance(layers, int) else list(layers or [])


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
    yield Row(them + "logit_scale", ())  # of CLIP's own training
    yield from _pair(them + "ln_final", inner + "final_layer_norm")
    adapted = _adapted(config.text_adapter)
    for i in range(config.text_config.num_hidden_layers):
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
    adapted = _adapted(config.vision_adapter)
    for i in range(config.vision_config.num_hidden_layers):
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
    for i in range(len(config.tap_layers) + 1):
        yield from _attention(f"neck.fusion{i + 3}.multihead_attn", f"neck.gates.{i}.attention")
        # The last is stored as a transposed convolution; with a 1×1 kernel that is the same map.
        yield from _head_block(f"neck.f{i + 3}_proj", f"neck.tap_projs.{i}", transposed=i == len(config.tap_layers))
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
