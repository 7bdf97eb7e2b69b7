"""Tiny backbones with random weights, one per supported type, and a DETRIS config for them."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from detris_peft import DenseAlignerConfig, DetrisConfig, TextAdapterConfig

_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4}
_IMAGE = {**_SIZES, "hidden_size": 32, "image_size": 32, "patch_size": 8}
_TEXT = {**_SIZES, "hidden_size": 48, "vocab_size": 60, "intermediate_size": 64}
_CLIP = {**_TEXT, "projection_dim": 24, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 0}

IMAGE = {
    "dinov2": (Dinov2Model, Dinov2Config, _IMAGE),
    "dinov2_with_registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, _IMAGE),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig, {**_IMAGE, "num_register_tokens": 4, "intermediate_size": 64}),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {**_IMAGE, "intermediate_size": 64}),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {**_IMAGE, "intermediate_size": 64}),
    "vit": (ViTModel, ViTConfig, {**_IMAGE, "intermediate_size": 64}),
}
TEXT = {
    "clip_projected": (CLIPTextModelWithProjection, CLIPTextConfig, _CLIP),
    "clip": (CLIPTextModel, CLIPTextConfig, _CLIP),
    "siglip": (SiglipTextModel, SiglipTextConfig, {**_TEXT, "projection_size": 24, "max_position_embeddings": 16}),
    "bert": (BertModel, BertConfig, _TEXT),
    "xlm_roberta": (XLMRobertaModel, XLMRobertaConfig, _TEXT),
}


def image_encoder(kind: str = "dinov2_with_registers", **changes) -> PreTrainedModel:
    """Return an image encoder in eval mode."""
    model, config, fields = IMAGE[kind]
    return model(config(**{**fields, **changes})).eval()


def text_encoder(kind: str = "clip_projected", **changes) -> PreTrainedModel:
    """Return a text encoder in eval mode."""
    model, config, fields = TEXT[kind]
    return model(config(**{**fields, **changes})).eval()


def tiny_config(**changes) -> DetrisConfig:
    """Return a config for tiny backbones. The head's width (40) differs from those of both encoders (32 and 48)."""
    fields = {
        "vision_config": image_encoder().config,
        "text_config": text_encoder().config,
        "vision_adapter": DenseAlignerConfig(
            dim=16,
            layers_to_transform=[0, 2],
            text_dim=48,
            cross_attention_dim=16,
            cross_attention_heads=2,
        ),
        "text_adapter": TextAdapterConfig(dim=16, layers_to_transform=[1]),
        "hidden_dim": 40,
        "neck_heads": 4,
        "decoder_layers": 1,
        "decoder_heads": 4,
        "decoder_ffn_dim": 24,
        "image_size": 48,
        "max_text_length": 7,
    }
    return DetrisConfig(**{**fields, **changes})


def inputs(batch: int = 2, height: int = 48, width: int = 48, pad: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch of images, sentences of different lengths and soft masks, independent of the global seed."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(2, 58, (batch, 7), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 58, 59
    input_ids[0, 4:] = torch.tensor([59, pad, pad])
    return {
        "pixel_values": torch.randn(batch, 3, height, width, generator=generator),
        "input_ids": input_ids,
        "labels": torch.rand(batch, height, width, generator=generator),
    }


def perturb(model: torch.nn.Module) -> None:
    """Change all trained weights and running statistics in place, so that they differ from any new model's."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
