"""Where the MLP of a block is, per `model_type` of transformers.

Encoders differ in the name of a block's MLP and in the submodule that receives the adapter's second input before the
MLP runs. The second input is

- for the Dense Aligner, the keyword arguments (`text_states`, `patch_grid`): transformers passes unknown keyword
  arguments down to the attention module of every block;
- for the text adapter, the residual stream: the input of the norm before the MLP.

To add a backbone, add a row here and one in `modeling/encoders.py`, which defines how the encoder is called and read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLayout:
    """Names of modules in an encoder.

    Attributes:
        mlp: the module to whose output the adapter's output is added, relative to the block.
        input_module: the module that receives the adapter's second input, relative to the block. The block's forward
            must call it before `mlp`.
    """

    mlp: str
    input_module: str


# Name of the module list of blocks, as a regular expression: `encoder.layer.3`, `layers.3`.
BLOCK_LIST = "layers?"
ANY_LIST = r"[^.]+"  # for unlisted backbones

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
    # Post-norm blocks: the MLP is split into two modules; its residual input is the input of `intermediate`.
    "bert": BlockLayout("output.dense", "intermediate"),
    "xlm-roberta": BlockLayout("output.dense", "intermediate"),
}
