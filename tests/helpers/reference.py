"""The config of the reference checkpoint, and the folder with the recorded values (fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTextConfig, Dinov2WithRegistersConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, TextAdapterConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"


def reference_config(**changes) -> DetrisConfig:
    """Return the architecture of `fixtures/tiny_checkpoint.pth` as a `DetrisConfig`."""
    fields = {
        "vision_config": Dinov2WithRegistersConfig(
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=70,
            patch_size=14,
            num_register_tokens=4,
        ),
        "text_config": CLIPTextConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=1,
            vocab_size=120,
            projection_dim=64,
            bos_token_id=118,
            eos_token_id=119,
            pad_token_id=0,
        ),
        "vision_adapter": DenseAlignerConfig(
            dim=32,
            layers_to_transform=[1, 3],
            text_dim=64,
            cross_attention_dim=16,
            cross_attention_heads=2,
            cross_attention_dropout=0.0,
        ),
        "text_adapter": TextAdapterConfig(dim=16, layers_to_transform=[0, 2]),
        "extract_layers": [1, 2],
        "hidden_dim": 64,
        "neck_heads": 4,
        "decoder_layers": 2,
        "decoder_heads": 4,
        "decoder_ffn_dim": 64,
        "dropout": 0.0,
        "image_size": 56,
        "max_text_length": 9,
    }
    return DetrisConfig(**{**fields, **changes})
