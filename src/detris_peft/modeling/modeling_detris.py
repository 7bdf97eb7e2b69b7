"""DETRIS for referring image segmentation: DETRIS (https://arxiv.org/abs/2501.08580).

Symbols: B batch, L text length, T width of the text encoder, S width of the sentence, C width of the image encoder,
s side of the image in pixels, h×w patch grid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from ..adapters import DenseAlignerConfig, ParallelAdapterLayer
from .checkpoint import load_checkpoint, save_checkpoint
from .configuration_detris import DetrisConfig
from .encoders import (
    IMAGE_ENCODERS,
    ImageEncoder,
    build_backbone,
    sentence_state,
    text_encoder,
    use_official_position_table,
)
from .hub import push_folder, push_model
from .losses import segmentation_loss
from .mask_decoder import Projector, VisionLanguageDecoder
from .neck import CrossModalNeck

_COMMIT_KEYWORDS = ("token", "private", "commit_message", "commit_description", "revision", "create_pr")


@dataclass
class DetrisOutput(ModelOutput):
    """
    Output of [`DetrisForReferringSegmentation`].

    Attributes:
        loss: scalar, where `labels` were given: mean binary cross-entropy (equation 7).
        logits: (B, 1, 4h, 4w), before the sigmoid.
        text_states: (B, L, T), the text encoder's last hidden states, after its final norm.
        sentence_state: (B, S), what the head knows the sentence by.
        vision_features: the taps, (B, C, h, w) each: outputs of the blocks `config.extract_layers`, the last
            as the image encoder's `last_hidden_state` (after its final norm, where it has one).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    sentence_state: torch.Tensor | None = None
    vision_features: tuple[torch.Tensor, ...] | None = None


class DetrisForReferringSegmentation(PreTrainedModel):
    """A frozen image encoder, a frozen text encoder, adapters in both, and a mask head.

    `DetrisForReferringSegmentation(config)` has random weights throughout; `from_backbones` takes loaded encoders and
    adds fresh adapters and a fresh head; `from_pretrained` loads trained ones over the encoders that the checkpoint
    names. Only adapters and head are trained, and only they are saved.

    `vision_model` and `text_model` are `PeftModel`s (plain encoders where their adapter is None), with all that peft
    offers.
    """

    config: DetrisConfig
    config_class = DetrisConfig
    base_model_prefix = "detris"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # The loss is a mean: transformers' Trainer divides it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(
        self,
        config: DetrisConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        vision = vision_model if vision_model is not None else build_backbone(config.vision_config)
        text = text_model if text_model is not None else build_backbone(config.text_config)
        if config.position_interpolation == "official":
            use_official_position_table(vision)
        self.vision_model = _adapt(vision, config.vision_adapter)
        self.text_model = _adapt(text, config.text_adapter)
        dim, text_dim = config.hidden_dim, config.text_config.hidden_size
        self.neck = CrossModalNeck(
            config.vision_config.hidden_size,
            config.sentence_dim,
            dim,
            config.neck_heads,
            len(config.extract_layers) + 1,
        )
        self.decoder = VisionLanguageDecoder(
            dim, text_dim, config.decoder_layers, config.decoder_heads, config.decoder_ffn_dim, config.dropout
        )
        self.projector = Projector(dim, config.sentence_dim)
        self.post_init()
        self.train()

    def init_weights(self) -> None:
        """Nothing to do: every part initializes itself, and transformers' pass would overwrite loaded backbones."""

    @classmethod
    def from_backbones(
        cls, vision_model: PreTrainedModel, text_model: PreTrainedModel, config: DetrisConfig | None = None
    ) -> DetrisForReferringSegmentation:
        """Frozen, loaded backbones with fresh adapters and a fresh head.

        Args:
            vision_model: image encoder, as loaded by transformers.
            text_model: text encoder; for CLIP a `CLIPTextModelWithProjection`.
            config: adapters and head; its backbone configs are replaced by those of the two models. By default
                DETRIS-B's, with `text_dim` of the text encoder.

        Raises:
            ValueError: the config does not fit the backbones.
        """
        for model in (vision_model, text_model):
            model.config.architectures = [type(model).__name__]  # so that the same class is built when loading
        if config is None:
            aligner = DenseAlignerConfig(text_dim=text_model.config.hidden_size)
            config = DetrisConfig(vision_model.config, text_model.config, vision_adapter=aligner)
        else:
            config = config.with_backbones(vision_model.config, text_model.config)
        config.name_backbone("vision", vision_model.name_or_path)
        config.name_backbone("text", text_model.name_or_path)
        return cls(config, vision_model, text_model)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> DetrisForReferringSegmentation:
        """Adapters and head of a checkpoint over the backbones it names, in eval mode.

        Args:
            pretrained_model_name_or_path: folder or Hub repository, as `save_pretrained` writes it.
            vision_model, text_model: loaded backbones to use in place of those that the checkpoint names.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder` find the
                checkpoint; `dtype`, `device_map` and `attn_implementation` go to the backbones.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: the weights do not fit the backbones.
        """
        return load_checkpoint(cls, pretrained_model_name_or_path, vision_model, text_model, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json`, `vision_adapter/`, `text_adapter/`, `head.safetensors` and a model card.

        Args:
            save_directory: the folder; made if missing. Files appear in it only when all are written.
            is_main_process: False writes nothing (the other processes of a distributed run).
            state_dict: gathered weights to save in place of the module's own (FSDP, DeepSpeed).
            push_to_hub: upload the folder too, with the processor's files if they lie in it; `repo_id` (by default the
                folder's name) and the keywords of `push_to_hub` go along.
        """
        if is_main_process:
            save_checkpoint(self, save_directory, state_dict)
        if push_to_hub and is_main_process:
            repo_id = kwargs.get("repo_id") or os.path.basename(os.path.normpath(save_directory))
            push_folder(save_directory, repo_id, **{k: kwargs[k] for k in _COMMIT_KEYWORDS if k in kwargs})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Upload what `save_pretrained` writes, in one commit; the repository is made if missing.

        Args:
            repo_id: `user/name`.
            commit_message, commit_description: of the commit.
            private: whether a new repository is.
            token: by default the one that `hf auth login` or HF_TOKEN gave.
            revision: a branch, made if missing; the main one by default.
            create_pr: open a pull request in place of a commit to the branch.
            kwargs: other keywords that transformers takes, of no use here.

        Raises:
            ValueError: `repo_id` is no name, or a backbone is a local folder, which nobody else could load.
            PermissionError: the token is refused.
            OSError: the upload failed otherwise. The messages say where the weights are and how to push them again.
        """
        return push_model(
            self,
            repo_id,
            token=token,
            private=private,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's, as transformers and accelerate (FSDP) ask every model for them."""
        return self.text_model.get_input_embeddings()  # type: ignore[operator]

    def train(self, mode: bool = True) -> DetrisForReferringSegmentation:
        """Adapters and head follow `mode`; the frozen backbones stay in eval (no dropout, no stochastic depth)."""
        super().train(mode)
        for backbone in (self.vision_model, self.text_model):
            backbone.eval()
            for module in backbone.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = mode  # the flag alone: transformers checkpoints a block only in training
                elif isinstance(module, ParallelAdapterLayer):
                    module.train(mode)
                    module.base_layer.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        target_sizes: Any = None,
        return_dict: bool | None = None,
    ) -> DetrisOutput | tuple:
        """
        Args:
            pixel_values: (B, 3, H, W) images, sides multiples of the patch.
            input_ids: (B, L) tokens, padded with `config.pad_token_id`.
            labels: (B, H, W) masks, floats in [0, 1] (soft where the letterbox warped an edge).
            target_sizes: not used; here so that all of what the processor gives can be passed.
        """
        # 1. Text first: its states travel through the image encoder.
        text_states, sentence = self.encode_text(input_ids)
        # 2. Image
        taps = self.encode_image(pixel_values, text_states)
        # 3. Head, in its own precision (the backbones may be loaded in a lower one)
        dtype = self.neck.sentence_proj.weight.dtype
        features = self.neck(tuple(tap.to(dtype) for tap in taps), sentence.to(dtype))
        features = self.decoder(features, text_states.to(dtype), padding_mask=input_ids == self.config.pad_token_id)
        logits = self.projector(features, sentence.to(dtype))
        # 4. Loss
        loss = None if labels is None else segmentation_loss(logits, labels)
        output = DetrisOutput(loss, logits, text_states, sentence, taps)
        return output if return_dict is None or return_dict else output.to_tuple()

    def encode_text(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) tokens → text states (B, L, T) and sentence state (B, S)."""
        kwargs = {}
        if text_encoder(self.config.text_config).masks_padding:
            kwargs["attention_mask"] = (input_ids != self.config.pad_token_id).long()
        outputs = self.text_model(input_ids=input_ids, **kwargs)
        return outputs.last_hidden_state, sentence_state(self.config.text_config, outputs)

    def encode_image(self, pixel_values: torch.Tensor, text_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) images and (B, L, T) text states → the taps, (B, C, h, w) each."""
        h, w = self._patch_grid(pixel_values)
        kwargs = dict(IMAGE_ENCODERS.get(self.config.vision_config.model_type, ImageEncoder()).call)
        if self.config.vision_adapter is not None:
            kwargs["text_states"] = text_states
        outputs = self.vision_model(pixel_values=pixel_values, output_hidden_states=True, **kwargs)
        # hidden_states[0] is the embedding, so block i gives hidden_states[i + 1].
        taps = [outputs.hidden_states[i + 1] for i in self.config.extract_layers] + [outputs.last_hidden_state]
        # Prefix tokens (class, registers) come first in every backbone: the patches are the last h·w.
        return tuple(tap[:, tap.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w)) for tap in taps)

    def _patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"pixel_values is {height}x{width}: both sides must be multiples of the patch, {patch}.")
        return height // patch, width // patch


def _adapt(backbone: PreTrainedModel, adapter: PeftConfig | None) -> nn.Module:
    """The backbone frozen, with a fresh adapter if there is to be one."""
    if isinstance(backbone, PeftModel) or any(isinstance(m, ParallelAdapterLayer) for m in backbone.modules()):
        raise ValueError(
            f"The {backbone.config.model_type} backbone carries adapters already: pass a plain one, freshly loaded; "
            "the model adds its own."
        )
    backbone.requires_grad_(False)
    if adapter is None:
        return backbone
    # A copy: peft fills in target modules and the like, which belong to this backbone, not to the user's config.
    fields = {k: v for k, v in adapter.to_dict().items() if k not in ("peft_type", "peft_version", "auto_mapping")}
    return get_peft_model(backbone, type(adapter)(**fields))


AutoConfig.register(DetrisConfig.model_type, DetrisConfig)
AutoModel.register(DetrisConfig, DetrisForReferringSegmentation)
