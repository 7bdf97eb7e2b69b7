"""Cases for the adapter tests: each tuner on each backbone, as tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
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

from detris_peft import BottleneckAdapterConfig, CompacterConfig, DenseAlignerConfig, TextAdapterConfig
from detris_peft.adapters import SequentialAdapterLayer
from detris_peft.adapters.block_layouts import IMAGE_BLOCKS, TEXT_BLOCKS

TEXT_DIM = 24  # width T of `text_states`; differs from the width of the image encoders
DIM = 16
BATCH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGE = {**SIZES, "image_size": 28, "patch_size": 14}
TEXT = {**SIZES, "intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 20}


@dataclass(frozen=True)
class AdapterCase:
    """One tuner on one backbone.

    Attributes:
        name: id of the case in the test names.
        model_cls: class of the backbone.
        backbone_config: returns a new config of the backbone.
        mlp: name of the MLP within a block, the default target.
        block_list: path of the list of blocks.
        extra_inputs: further arguments of the backbone's forward.
    """

    name: str
    model_cls: type[PreTrainedModel]
    backbone_config: Callable[[], Any]
    mlp: str
    block_list: str
    extra_inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_image_encoder(self) -> bool:
        return "image_size" in self.backbone_config().to_dict()

    @property
    def takes_text_states(self) -> bool:
        return self.is_image_encoder

    @property
    def peft_type(self) -> str:
        return "DENSE_ALIGNER" if self.is_image_encoder else "TEXT_ADAPTER"

    @property
    def targets(self) -> list[str]:
        """The modules of a block that get an adapter, in the order of the block."""
        return [self.mlp]

    @property
    def up_key(self) -> str:
        """The end of the key of the up-projection's weight."""
        return "up.right" if self.peft_type == "COMPACTER" else "up.weight"

    @property
    def has_statistics(self) -> bool:
        """Whether the adapter contains BatchNorm."""
        return self.peft_type in ("DENSE_ALIGNER", "TEXT_ADAPTER")

    def make_backbone(self, **kwargs: Any) -> PreTrainedModel:
        """Return a new backbone. Its random weights are the same in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = self.backbone_config()
            config._attn_implementation = kwargs.pop("attn_implementation", "sdpa")
            return self.model_cls(config).eval()

    def make_config(self, **changes: Any) -> Any:
        """Return a small adapter config; `changes` override its fields."""
        fields: dict[str, Any] = {"dim": DIM, "layers_to_transform": [0, 2]}
        if not self.is_image_encoder:
            return TextAdapterConfig(**{**fields, **changes})
        fields |= {"text_dim": TEXT_DIM, "cross_attention_dim": 8, "cross_attention_heads": 2}
        return DenseAlignerConfig(**{**fields, "cross_attention_dropout": 0.0, **changes})

    def make_model(self, adapter_name: str = "default", **changes: Any) -> PeftModel:
        """Return the backbone with a new adapter whose initial values are replaced by random ones, in eval mode."""
        model = get_peft_model(self.make_backbone(), self.make_config(**changes), adapter_name=adapter_name)
        randomize(model, weights="init_weights" not in changes)
        return model.eval()

    def inputs(self, batch: int = BATCH, seed: int = 0) -> dict[str, Any]:
        """Return inputs of the model. They depend only on the arguments."""
        generator = torch.Generator().manual_seed(seed)
        if self.is_image_encoder:
            images = torch.randn(batch, 3, 28, 42, generator=generator)  # not square
            text = torch.randn(batch, 5, TEXT_DIM, generator=generator)
            text_states = {"text_states": text} if self.takes_text_states else {}
            return {"pixel_values": images, **text_states, **self.extra_inputs}
        return {"input_ids": torch.randint(5, 90, (batch, 7), generator=generator), **self.extra_inputs}

    @torch.no_grad()
    def run(self, model: nn.Module, **changes: Any) -> torch.Tensor:
        """Return the model's last hidden state for `inputs()`, with `changes` in the arguments."""
        return model(**{**self.inputs(), **changes}).last_hidden_state


@dataclass(frozen=True)
class SequentialCase(AdapterCase):
    """One sequential tuner, after attention and MLP, on one backbone.

    Attributes:
        config_cls: class of the adapter config.
    """

    config_cls: type = BottleneckAdapterConfig

    @property
    def takes_text_states(self) -> bool:
        return False

    @property
    def peft_type(self) -> str:
        return "COMPACTER" if self.config_cls is CompacterConfig else "BOTTLENECK_ADAPTER"

    @property
    def targets(self) -> list[str]:
        return [{**IMAGE_BLOCKS, **TEXT_BLOCKS}[self.backbone_config().model_type].attention_output, self.mlp]

    def make_config(self, **changes: Any) -> Any:
        fields: dict[str, Any] = {"dim": DIM, "layers_to_transform": [0, 2], "after_attention": True, "scale": 0.2}
        if self.config_cls is CompacterConfig:
            fields["phm_rank"] = 3
        return self.config_cls(**{**fields, **changes})


def randomize(model: nn.Module, adapter_name: str | None = None, weights: bool = True) -> None:
    """Randomize the BatchNorm statistics of one adapter or of all, and the weights of sequential adapters.

    With their initial values, a test could not detect that they are not saved: these weights start at or near zero.
    """
    for name, module in model.named_modules():
        selected = adapter_name is None or f".{adapter_name}." in f"{name}."
        if isinstance(module, nn.modules.batchnorm._NormBase) and selected:
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
        if weights and isinstance(module, SequentialAdapterLayer):
            for adapter in module.branches if adapter_name is None else {adapter_name} & set(module.branches):
                with torch.no_grad():
                    for parameter in module.branches[adapter].parameters():
                        parameter.normal_(std=0.3)


# The position embeddings of these backbones have the shape of square images.
INTERPOLATE_POSITIONS = {"interpolate_pos_encoding": True}

IMAGE_CASES = [
    AdapterCase("dinov2", Dinov2Model, lambda: Dinov2Config(**IMAGE, mlp_ratio=2), "mlp", "encoder.layer"),
    AdapterCase(
        "dinov2-swiglu",
        Dinov2Model,
        lambda: Dinov2Config(**IMAGE, mlp_ratio=2, use_swiglu_ffn=True),
        "mlp",
        "encoder.layer",
    ),
    AdapterCase(
        "dinov2-registers",
        Dinov2WithRegistersModel,
        lambda: Dinov2WithRegistersConfig(**IMAGE, mlp_ratio=2, num_register_tokens=4),
        "mlp",
        "encoder.layer",
    ),
    AdapterCase(
        "dinov3",
        DINOv3ViTModel,
        # Otherwise positions are rescaled at random in training mode.
        lambda: DINOv3ViTConfig(**IMAGE, intermediate_size=48, num_register_tokens=2, pos_embed_rescale=None),
        "mlp",
        "model.layer",
    ),
    AdapterCase(
        "clip-vision",
        CLIPVisionModel,
        lambda: CLIPVisionConfig(**IMAGE, intermediate_size=48),
        "mlp",
        "encoder.layers",
        INTERPOLATE_POSITIONS,
    ),
    AdapterCase(
        "siglip-vision",
        SiglipVisionModel,
        lambda: SiglipVisionConfig(**IMAGE, intermediate_size=48),
        "mlp",
        "encoder.layers",
        INTERPOLATE_POSITIONS,
    ),
    AdapterCase(
        "vit", ViTModel, lambda: ViTConfig(**IMAGE, intermediate_size=48), "mlp", "layers", INTERPOLATE_POSITIONS
    ),
]

TEXT_CASES = [
    AdapterCase("clip-text", CLIPTextModel, lambda: CLIPTextConfig(**TEXT, eos_token_id=98), "mlp", "encoder.layers"),
    AdapterCase(
        "clip-text-projection",
        CLIPTextModelWithProjection,
        lambda: CLIPTextConfig(**TEXT, eos_token_id=98, projection_dim=8),
        "mlp",
        "text_model.encoder.layers",
    ),
    AdapterCase("siglip-text", SiglipTextModel, lambda: SiglipTextConfig(**TEXT), "mlp", "encoder.layers"),
    AdapterCase("bert", BertModel, lambda: BertConfig(**TEXT), "output.dense", "encoder.layer"),
    AdapterCase("xlm-roberta", XLMRobertaModel, lambda: XLMRobertaConfig(**TEXT), "output.dense", "encoder.layer"),
]

PARALLEL_CASES = IMAGE_CASES + TEXT_CASES


def sequential_case(case: AdapterCase, config_cls: type) -> SequentialCase:
    """Return the case of a sequential tuner on the backbone of another case."""
    suffix = "compacter" if config_cls is CompacterConfig else "bottleneck"
    values = {f.name: getattr(case, f.name) for f in fields(AdapterCase)}
    return SequentialCase(**{**values, "name": f"{case.name}-{suffix}"}, config_cls=config_cls)


BOTTLENECK_CASES = [sequential_case(case, BottleneckAdapterConfig) for case in PARALLEL_CASES]
COMPACTER_CASES = [sequential_case(case, CompacterConfig) for case in PARALLEL_CASES]
# One backbone per tuner, for behavior that does not depend on the backbone.
DINOV2, CLIP_TEXT = IMAGE_CASES[0], TEXT_CASES[0]
BOTTLENECK = BOTTLENECK_CASES[0]
COMPACTER = COMPACTER_CASES[len(IMAGE_CASES)]
CASES = PARALLEL_CASES + BOTTLENECK_CASES + COMPACTER_CASES

# The sequential tuners have little code that depends on the backbone: most of their cases run with the slow tests.
_FAST = {"dinov2-bottleneck", "bert-bottleneck", "dinov3-compacter", "clip-text-compacter"}
every_case = pytest.mark.parametrize(
    "case",
    [
        case if case in PARALLEL_CASES or case.name in _FAST else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
    ids=lambda case: case.name,
)
every_parallel_case = pytest.mark.parametrize("case", PARALLEL_CASES, ids=lambda case: case.name)
every_sequential_case = pytest.mark.parametrize("case", BOTTLENECK_CASES + COMPACTER_CASES, ids=lambda case: case.name)
every_parallel_case_and_each_tuner = pytest.mark.parametrize(
    "case", [*PARALLEL_CASES, BOTTLENECK, COMPACTER], ids=lambda case: case.name
)
every_image_case = pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
each_tuner = pytest.mark.parametrize(
    "case",
    [DINOV2, CLIP_TEXT, BOTTLENECK, COMPACTER],
    ids=["dense-aligner", "text-adapter", "bottleneck", "compacter"],
)
each_parallel_tuner = pytest.mark.parametrize("case", [DINOV2, CLIP_TEXT], ids=["dense-aligner", "text-adapter"])
each_sequential_tuner = pytest.mark.parametrize("case", [BOTTLENECK, COMPACTER], ids=["bottleneck", "compacter"])


def assert_differ(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > 1e-4


def select_samples(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Return the inputs of some samples of a batch."""
    return {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
