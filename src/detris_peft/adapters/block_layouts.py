"""Where the MLP and the attention of a block are, per `model_type` of transformers.

Encoders differ in the names of a block's MLP and of the output projection of its attention, and in the submodule that
receives the second input of a parallel adapter before the MLP runs. The second input is

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
        mlp: the module whose output is that of the MLP, relative to the block.
        input_module: the module that receives the second input of a parallel adapter, relative to the block. The
            block's forward must call it before `mlp`.
        attention_output: the last linear layer of the attention, relative to the block. Unlike the attention itself,
            it returns a tensor in every encoder.
    """

    mlp: str
    input_module: str
    attention_output: str


# Name of the module list of blocks, as a regular expression: `encoder.layer.3`, `layers.3`.
BLOCK_LIST = "layers?"
ANY_LIST = r"[^.]+"  # for unlisted backbones

IMAGE_BLOCKS = {
    "dinov2": BlockLayout("mlp", "attention", "attention.o_proj"),
    "dinov2_with_registers": BlockLayout("mlp", "attention", "attention.o_proj"),
    "dinov3_vit": BlockLayout("mlp", "attention", "attention.o_proj"),
    "vit": BlockLayout("mlp", "attention", "attention.o_proj"),
    "clip_vision_model": BlockLayout("mlp", "self_attn", "self_attn.out_proj"),
    "siglip_vision_model": BlockLayout("mlp", "self_attn", "self_attn.out_proj"),
}

TEXT_BLOCKS = {
    "clip_text_model": BlockLayout("mlp", "layer_norm2", "self_attn.out_proj"),
    "siglip_text_model": BlockLayout("mlp", "layer_norm2", "self_attn.out_proj"),
    # Post-norm blocks: the MLP is split into two modules; its residual input is the input of `intermediate`.
    "bert": BlockLayout("output.dense", "intermediate", "attention.output.dense"),
    "xlm-roberta": BlockLayout("output.dense", "intermediate", "attention.output.dense"),
}
