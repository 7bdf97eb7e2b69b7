"""Write docs/backbones.md: which backbones work, and what DETRIS-B's adapters and head weigh on each pair.

    python docs/generate_backbones.py

Models are built at their published sizes on the meta device: nothing is downloaded or allocated.
"""

from pathlib import Path

import torch
from transformers import AutoConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation
from detris_peft.adapters.block_layouts import IMAGE_BLOCKS, TEXT_BLOCKS
from detris_peft.modeling.encoders import TEXT_ENCODERS

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
IMAGE = {
    "DINOv2-S/14": ("dinov2", {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 14, "image_size": 518}),
    "DINOv2-B/14": ("dinov2", {**_BASE, "patch_size": 14, "image_size": 518}),
    "DINOv2-L/14": ("dinov2", {**_LARGE, "patch_size": 14, "image_size": 518}),
    "DINOv2-g/14": (
        "dinov2",
        {
            "hidden_size": 1536,
            "num_hidden_layers": 40,
            "num_attention_heads": 24,
            "use_swiglu_ffn": True,
            "patch_size": 14,
            "image_size": 518,
        },
    ),
    "DINOv2-B/14, 4 registers": ("dinov2_with_registers", {**_BASE, "patch_size": 14, "image_size": 518}),
    "DINOv3-B/16": ("dinov3_vit", {**_BASE, "intermediate_size": 3072, "patch_size": 16, "num_register_tokens": 4}),
    "CLIP ViT-B/16": ("clip_vision_model", {**_BASE, "patch_size": 16}),
    "SigLIP-B/16": ("siglip_vision_model", {**_BASE, "patch_size": 16}),
    "ViT-B/16": ("vit", {**_BASE, "patch_size": 16}),
}
TEXT = {
    "CLIP ViT-B/16": ("clip_text_model", {}),
    "SigLIP-B": ("siglip_text_model", {**_BASE}),
    "BERT-base": ("bert", {**_BASE}),
    "XLM-R-base": ("xlm-roberta", {**_BASE, "vocab_size": 250002}),
}


INTRODUCTION = """# Backbones

Any image encoder of the first table goes with any text encoder of the second:
`DetrisForReferringSegmentation.from_backbones(vision, text)`. Where a block's MLP is, how wide the encoder is, the
patch grid and where the sentence comes from is asked of the backbone; the tables in the code have one row a model
type. For another encoder see [adapters.md](adapters.md#other-backbones).
"""


def trainable(image: tuple[str, dict], text: tuple[str, dict]) -> tuple[int, int]:
    """Parameters of the adapters, and of the head."""
    vision_config, text_config = (AutoConfig.for_model(kind, **fields) for kind, fields in (image, text))
    config = DetrisConfig(
        vision_config, text_config, vision_adapter=DenseAlignerConfig(text_dim=text_config.hidden_size)
    )
    with torch.device("meta"):
        model = DetrisForReferringSegmentation(config)
    numbers = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    adapters = sum(n for name, n in numbers.items() if name.startswith(("vision_model", "text_model")))
    return adapters, sum(numbers.values()) - adapters


def page() -> str:
    lines = [
        INTRODUCTION,
        "| image encoder | adapter beside | second input from |",
        "|---|---|---|",
        *(f"| `{kind}` | `{row.mlp}` | keywords of `{row.input_module}` |" for kind, row in IMAGE_BLOCKS.items()),
        "",
        "| text encoder | adapter beside | second input from | padding id | padding masked |",
        "|---|---|---|---|---|",
    ]
    for kind, row in TEXT_BLOCKS.items():
        encoder = TEXT_ENCODERS[kind]
        masked = "yes" if encoder.masks_padding else "no"
        lines.append(f"| `{kind}` | `{row.mlp}` | input of `{row.input_module}` | {encoder.pad_token_id} | {masked} |")
    lines += [
        "",
        "## Trainable parameters",
        "",
        "DETRIS-B's adapters (blocks 1, 3, 5, 7, 9 and 11 of both encoders) and head, in millions: adapters + head.",
        "",
        "| | " + " | ".join(TEXT) + " |",
        "|---" * (len(TEXT) + 1) + "|",
    ]
    for name, image in IMAGE.items():
        cells = (
            f"{adapters / 1e6:.2f} + {head / 1e6:.2f}"
            for adapters, head in (trainable(image, t) for t in TEXT.values())
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Made by `python docs/generate_backbones.py`.", ""])


if __name__ == "__main__":
    Path(__file__).with_name("backbones.md").write_text(page(), encoding="utf-8")
