"""Where an adapter sits in a backbone: one row a `model_type` of transformers, asked by name, never typed by the user.

Two things differ between encoders: what the MLP of a block is called, and which module of the block meets the
adapter's second input before the MLP runs. That second input is

- for the Dense Aligner, the keyword arguments (`text_states`, `patch_grid`): transformers passes unknown keywords down
  to the attention module of every block;
- for the text adapter, the residual stream: the input of the norm in front of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLayout:
    """Names inside an encoder.

    Attributes:
        mlp: the module whose output the adapter's output is added to, relative to the block.
        input_module: the module that meets the adapter's second input, relative to the block; it must be called in
            the block's forward before `mlp`.
    """

    mlp: str
    input_module: str


# The module list that holds the blocks, as a regular expression: `encoder.layer.3`, `layers.3`.
BLOCK_LIST = "layers?"
ANY_LIST = r"[^.]+"  # for backbones that are not listed here

IMAGE_BLOCKS = {
    "dinov2": BlockLayout("mlp", "attention"),
    "dinov2_with_registers": BlockLayout("mlp", "attention"),
    "dinov3_vit": BlockLayout("mlp", "attention"),
    "vit": BlockLayout("mlp", "attention"),
    "clip_vision_model": BlockLayout("mlp", "self_attn"),
    "siglip_vision_model": BlockLayout("mlp", "self_attn"),
}

TEXT_BLOCKS = {
    "clip_text_model": BlockLayout("mlp", "layer_norm2"),
    "siglip_text_model": BlockLayout("mlp", "layer_norm2"),
    # Post-norm blocks: the MLP is split over two modules, its residual input is what `intermediate` gets.
    "bert": BlockLayout("output.dense", "intermediate"),
    "xlm-roberta": BlockLayout("output.dense", "intermediate"),
}
