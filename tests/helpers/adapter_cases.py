"""The table that the tests of the adapters run over: (tuner × backbone), as tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
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

from detris_peft import DenseAlignerConfig, TextAdapterConfig

TEXT_DIM = 24  # T of the sentences that the image encoders get; no image encoder is as wide
DIM = 16
BATCH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGE = {**SIZES, "image_size": 28, "patch_size": 14}
TEXT = {**SIZES, "intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 20}


@dataclass(frozen=True)
class Case:
    """One tuner on one backbone."""

    name: str
    model_cls: type[PreTrainedModel]
    backbone_config: Callable[[], Any]
    mlp: str  # of a block; what the default target is
    blocks: str  # path of the list of blocks
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_images(self) -> bool:
        return "image_size" in self.backbone_config().to_dict()

    def backbone(self, **kwargs: Any) -> PreTrainedModel:
        """Always the same random weights."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = self.backbone_config()
            config._attn_implementation = kwargs.pop("attn_implementation", "sdpa")
            return self.model_cls(config).eval()

    def config(self, **changes: Any) -> Any:
        fields: dict[str, Any] = {"dim": DIM, "layers_to_transform": [0, 2]}
        if not self.takes_images:
            return TextAdapterConfig(**{**fields, **changes})
        fields |= {"text_dim": TEXT_DIM, "cross_attention_dim": 8, "cross_attention_heads": 2}
        return DenseAlignerConfig(**{**fields, "cross_attention_dropout": 0.0, **changes})

    def adapted(self, adapter_name: str = "default", **changes: Any) -> PeftModel:
        model = get_peft_model(self.backbone(), self.config(**changes), adapter_name=adapter_name)
        stir(model)
        return model.eval()

    def inputs(self, batch: int = BATCH, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        if self.takes_images:
            images = torch.randn(batch, 3, 28, 42, generator=generator)  # not a square
            text = torch.randn(batch, 5, TEXT_DIM, generator=generator)
            return {"pixel_values": images, "text_states": text, **self.call}
        return {"input_ids": torch.randint(5, 90, (batch, 7), generator=generator), **self.call}

    @torch.no_grad()
    def states(self, model: nn.Module, **changes: Any) -> torch.Tensor:
        return model(**{**self.inputs(), **changes}).last_hidden_state


def stir(model: nn.Module, adapter_name: str | None = None) -> None:
    """Statistics as after training: a BatchNorm fresh from the factory hides that they were not saved."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            adapter_name is None or f".{adapter_name}." in name
        ):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)


SQUARE_TABLE = {"interpolate_pos_encoding": True}

IMAGE_CASES = [
    Case("dinov2", Dinov2Model, lambda: Dinov2Config(**IMAGE, mlp_ratio=2), "mlp", "encoder.layer"),
    Case(
        "dinov2-swiglu",
        Dinov2Model,
        lambda: Dinov2Config(**IMAGE, mlp_ratio=2, use_swiglu_ffn=True),
        "mlp",
        "encoder.layer",
    ),
    Case(
        "dinov2-registers",
        Dinov2WithRegistersModel,
        lambda: Dinov2WithRegistersConfig(**IMAGE, mlp_ratio=2, num_register_tokens=4),
        "mlp",
        "encoder.layer",
    ),
    Case(
        "dinov3",
        DINOv3ViTModel,
        # In training it would rescale positions at random.
        lambda: DINOv3ViTConfig(**IMAGE, intermediate_size=48, num_register_tokens=2, pos_embed_rescale=None),
        "mlp",
        "model.layer",
    ),
    Case(
        "clip-vision",
        CLIPVisionModel,
        lambda: CLIPVisionConfig(**IMAGE, intermediate_size=48),
        "mlp",
        "encoder.layers",
        SQUARE_TABLE,
    ),
    Case(
        "siglip-vision",
        SiglipVisionModel,
        lambda: SiglipVisionConfig(**IMAGE, intermediate_size=48),
        "mlp",
        "encoder.layers",
        SQUARE_TABLE,
    ),
    Case("vit", ViTModel, lambda: ViTConfig(**IMAGE, intermediate_size=48), "mlp", "layers", SQUARE_TABLE),
]

TEXT_CASES = [
    Case("clip-text", CLIPTextModel, lambda: CLIPTextConfig(**TEXT, eos_token_id=98), "mlp", "encoder.layers"),
    Case(
        "clip-text-projection",
        CLIPTextModelWithProjection,
        lambda: CLIPTextConfig(**TEXT, eos_token_id=98, projection_dim=8),
        "mlp",
        "text_model.encoder.layers",
    ),
    Case("siglip-text", SiglipTextModel, lambda: SiglipTextConfig(**TEXT), "mlp", "encoder.layers"),
    Case("bert", BertModel, lambda: BertConfig(**TEXT), "output.dense", "encoder.layer"),
    Case("xlm-roberta", XLMRobertaModel, lambda: XLMRobertaConfig(**TEXT), "output.dense", "encoder.layer"),
]

CASES = IMAGE_CASES + TEXT_CASES
# One backbone a tuner, for behavior that does not depend on the backbone.
DINOV2, CLIP_TEXT = IMAGE_CASES[0], TEXT_CASES[0]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_image_case = pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
each_tuner = pytest.mark.parametrize("case", [DINOV2, CLIP_TEXT], ids=["dense-aligner", "text-adapter"])


def assert_differ(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > 1e-4


def with_batch(case: Case, rows: list[int]) -> dict[str, Any]:
    """The inputs of some rows only."""
    return {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in case.inputs().items()}
