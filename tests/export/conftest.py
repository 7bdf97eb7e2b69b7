"""A model that is exported in seconds, and its exported programs."""

from __future__ import annotations

import pytest
import torch

from detris_peft import DenseAlignerConfig, DetrisForReferringSegmentation, TextAdapterConfig
from detris_peft.export import export_model
from detris_peft.export.program import Sample
from detris_peft.processing_detris import DetrisProcessor
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.tiny_models import image_encoder, perturb, text_encoder, tiny_config

_ALIGNER = {"dim": 16, "text_dim": 48, "cross_attention_dim": 16, "cross_attention_heads": 2}


def make_model(vision: str = "dinov2", text: str = "clip_projected", depth: int = 1, **changes):
    """Return a tiny model with changed weights, in eval mode, and its processor."""
    torch.manual_seed(0)
    layers = [0] if depth == 1 else [0, 2]
    # The vocabulary is large enough for a tokenizer of these sentences.
    tokens = {"vocab_size": 160, "bos_token_id": 158, "eos_token_id": 159}
    encoders = (image_encoder(vision, num_hidden_layers=depth), text_encoder(text, num_hidden_layers=depth, **tokens))
    fields = {
        "extract_layers": [0],
        "vision_adapter": DenseAlignerConfig(**_ALIGNER, layers_to_transform=layers),
        "text_adapter": TextAdapterConfig(dim=16, layers_to_transform=[0]),
    }
    config = tiny_config(vision_config=encoders[0].config, text_config=encoders[1].config, **{**fields, **changes})
    model = DetrisForReferringSegmentation.from_backbones(*encoders, config)
    perturb(model)
    tokenizer = train_tokenizer(["the small red square is on the left of a large circle"], 160)
    if model.config.pad_token_id:  # of encoders other than CLIP: the tokenizer check is for their own tokenizers
        tokenizer.pad_token_id = model.config.pad_token_id
    return model.eval(), DetrisProcessor.from_config(model.config, tokenizer)


@pytest.fixture(scope="package")
def small():
    """The smallest model, and its processor; tests do not change them."""
    return make_model()


class Stub(torch.nn.Module):
    """A model with the inputs of an exported one, and 160 kB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(100, 400))

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return pixel_values.mean((1, 2, 3))[:, None] * self.weight.sum(0) + input_ids.sum(1, keepdim=True)


@pytest.fixture(scope="package")
def stub_program():
    """A program that is traced and converted faster than a model, and its sample."""
    inputs = torch.randn(3, 3, 48, 48), torch.randint(0, 9, (3, 7))
    batch = torch.export.Dim("batch", min=1)
    shapes = {"pixel_values": {0: batch}, "input_ids": {0: batch}}
    model = Stub()
    program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    return program, Sample(*inputs, model(*inputs).detach())


@pytest.fixture(scope="package")
def pt2_file(small, tmp_path_factory):
    file = tmp_path_factory.mktemp("torch_export") / "model.pt2"
    export_model(*small, file, "torch_export")
    return file


@pytest.fixture(scope="package")
def onnx_file(small, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_model(*small, file, "onnx")
    return file
