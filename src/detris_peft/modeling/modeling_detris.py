"""The DETRIS model for referring image segmentation (https://arxiv.org/abs/2501.08580).

Symbols: B batch, L text length, T width of the text encoder, S width of the sentence state, C width of the image
encoder, s side of the input in pixels, h×w patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from ..adapters.portable import PortableModule
from ..running_statistics import discard_statistics_updates
from .backbone_adapters import adapt_backbone, unfreeze_backbone
from .block_hooks import BlockHooks
from .bridger import Bridger
from .checkpoint.trainer_index import LoadsCheckpointFiles
from .checkpoint.weights import backbone_buffers, head_keys
from .configuration_detris import DetrisConfig, check_kind
from .encoder_run import EncoderRun
from .encoders import (
    IMAGE_ENCODERS,
    ImageEncoder,
    build_backbone,
    end_positions,
    sentence_state,
    text_encoder,
)
from .hub_mixin import DetrisHubMixin
from .input_checks import check_inputs, check_masked_view, check_tokens
from .losses import distillation_loss, segmentation_loss
from .mask_decoder import Projector, VisionLanguageDecoder
from .neck import CrossModalNeck
from .official_positions import use_official_position_table


@dataclass
class DetrisOutput(ModelOutput):
    """
    Output of [`DetrisForReferringSegmentation`].

    Attributes:
        loss: scalar, if `labels` were given: mean binary cross-entropy (equation 7), or that of `config.loss_weights`.
        logits: (B, 1, 4h, 4w), before the sigmoid.
        text_states: (B, L, T), the text encoder's last hidden states, after its final norm.
        sentence_state: (B, S), the sentence embedding used by the head.
        vision_features: feature maps of (B, C, h, w) each: the outputs of the blocks `config.extract_layers`, then the
            image encoder's `last_hidden_state` (after its final norm, if it has one).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    sentence_state: torch.Tensor | None = None
    vision_features: tuple[torch.Tensor, ...] | None = None


class DetrisForReferringSegmentation(DetrisHubMixin, LoadsCheckpointFiles, PortableModule, PreTrainedModel):
    """Frozen image encoder, frozen text encoder, adapters in both, and a mask head.

    With `config.train_backbones`, the encoders are trained instead of adapters.

    `DetrisForReferringSegmentation(config)` has random weights; `from_backbones` takes loaded encoders and adds new
    adapters and a new head; `from_pretrained` loads trained ones over the encoders that the checkpoint names. Only
    adapters and head are trained, and only they are saved.

    `vision_model` and `text_model` are of type `PeftModel`, or plain encoders if their adapter is None.
    """

    config: DetrisConfig
    config_class = DetrisConfig
    base_model_prefix = "detris"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]  a tuple, as in transformers' models
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
        if config.train_backbones:
            self.vision_model, self.text_model = unfreeze_backbone(vision), unfreeze_backbone(text)
        else:
            self.vision_model = adapt_backbone(vision, config.vision_adapter)
            self.text_model = adapt_backbone(text, config.text_adapter)
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
        self.bridger = None
        if config.bridger is not None:
            self.bridger = Bridger(config.bridger, self.vision_model, self.text_model)
        self.block_hooks = None
        if config.vision_config.model_type in IMAGE_ENCODERS:
            self.block_hooks = BlockHooks(self.vision_model, config.extract_layers)
        # To find out when saving what a caller has added, and which buffers training has changed.
        self.head_keys = head_keys(self)
        self.initial_buffers = {} if config.train_backbones else backbone_buffers(self)
        self.post_init()
        # Otherwise transformers' Trainer warns that frozen weights are not in its checkpoints.
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self._keys_to_ignore_on_save = frozen | set(self.initial_buffers)
        self.train()

    def init_weights(self) -> None:
        """Do nothing: submodules initialize themselves; the default pass would overwrite loaded backbones."""

    @classmethod
    def from_backbones(
        cls,
        vision_model: PreTrainedModel,
        text_model: PreTrainedModel,
        config: DetrisConfig | None = None,
        tokenizer: Any = None,
    ) -> DetrisForReferringSegmentation:
        """Create a model from loaded backbones, which are frozen, with new adapters and a new head.

        Args:
            vision_model: image encoder, as loaded by transformers.
            text_model: text encoder; for CLIP a `CLIPTextModelWithProjection`.
            config: adapters and head; its backbone configs are replaced by those of the two models. Default:
                DETRIS-B's, scaled to the backbones (`DetrisConfig.scaled_to`).
            tokenizer: if given, checked to be the tokenizer of the text encoder.

        Raises:
            ValueError: the config or the tokenizer does not fit the backbones.
            TypeError: an argument is something else.
        """
        for name, model in (("vision_model", vision_model), ("text_model", text_model)):
            if not isinstance(getattr(model, "config", None), PreTrainedConfig):
                raise TypeError(
                    f"{name}: expected a model of transformers, got {type(model).__name__}; load it with "
                    "from_pretrained."
                )
            check_kind(name, model.config)
        if not isinstance(config, DetrisConfig | None):
            raise TypeError(f"config: expected a DetrisConfig or None, got {type(config).__name__}; pass one of them.")
        for model in (vision_model, text_model):
            model.config.architectures = [type(model).__name__]  # so that loading creates the same class
        if config is None:
            config = DetrisConfig().scaled_to(vision_model.config, text_model.config)
        else:
            config = config.with_backbones(vision_model.config, text_model.config)
        if tokenizer is not None:
            config.check_tokenizer(tokenizer)
        config.name_backbone("vision", vision_model.name_or_path)
        config.name_backbone("text", text_model.name_or_path)
        return cls(config, vision_model, text_model)

    def get_input_embeddings(self) -> nn.Module:
        """Return the text encoder's embeddings, which transformers and accelerate (FSDP) expect of every model."""
        return self.text_model.get_input_embeddings()  # type: ignore[operator]

    def train(self, mode: bool = True) -> DetrisForReferringSegmentation:
        """Set the mode of adapters and head; frozen backbones stay in eval mode (no dropout or drop path)."""
        super().train(mode)
        if self.config.train_backbones:
            return self
        for backbone in (self.vision_model, self.text_model):
            backbone.eval()
            for module in backbone.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = mode  # set the flag only: transformers checkpoints blocks in training mode
                elif isinstance(module, BaseTunerLayer):  # after the tuner layers around it
                    module.train(mode)
                    module.get_base_layer().eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        target_sizes: Any = None,
        return_dict: bool | None = None,
        image_indices: torch.Tensor | None = None,
        masked_pixel_values: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
    ) -> DetrisOutput | tuple:
        """
        Args:
            pixel_values: (B, 3, H, W) images, with sides that are multiples of the patch size.
            input_ids: (B, L) tokens, padded with `config.pad_token_id`.
            labels: (B, H, W) masks, floats in [0, 1] (fractional at edges that the letterbox interpolated).
            target_sizes: ignored; accepted so that `model(**processor(...))` works.
            return_dict: if False, return a tuple.
            image_indices: (B,), the position of each sentence's image in `pixel_values`, which then has each image
                once, (N, 3, H, W). What does not depend on the text is computed once per image: the first blocks of
                the image encoder, or all of them without Dense Aligners.
            masked_pixel_values: a second view of the images, with masked blocks, of the same shape. The loss is then
                the mean of that of the labels, and of the cross-entropy of this view's prediction against the
                detached one of the clean view. BatchNorm normalizes each view with its own statistics; its running
                statistics are those of the clean view, which is what the model sees after training.
            masked_input_ids: the tokens of that view, of the shape of `input_ids`.

        Raises:
            ValueError: an input has another shape; the message names it.
        """
        check_inputs(pixel_values, input_ids, labels, image_indices)
        # 1. Encoders
        encoded = self.encode(pixel_values, input_ids, image_indices)
        # 2. Head
        logits = self._segment(input_ids, *encoded)
        # 3. Loss
        loss = None if labels is None else segmentation_loss(logits, labels, weights=self.config.loss_weights)
        if (masked_pixel_values is not None or masked_input_ids is not None) and loss is not None:
            check_masked_view(masked_pixel_values, masked_input_ids, pixel_values, input_ids)
            with discard_statistics_updates(self):
                masked = self.encode(masked_pixel_values, masked_input_ids, image_indices)  # type: ignore[arg-type]
                masked_logits = self._segment(masked_input_ids, *masked)  # type: ignore[arg-type]  see the check
            loss = (loss + distillation_loss(masked_logits, logits)) / 2
        output = DetrisOutput(loss, logits, *encoded)
        return output if return_dict is None or return_dict else output.to_tuple()

    def _segment(
        self,
        input_ids: torch.Tensor,
        text_states: torch.Tensor,
        sentence: torch.Tensor,
        feature_maps: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """Return the logits (B, 1, 4h, 4w) for tokens (B, L) and what `encode` returns for them."""
        # The head has its own dtype: the backbones may be loaded in a lower precision.
        dtype = self.neck.sentence_proj.weight.dtype
        features = self.neck(tuple(feature_map.to(dtype) for feature_map in feature_maps), sentence.to(dtype))
        features = self.decoder(features, text_states.to(dtype), padding_mask=input_ids == self.config.pad_token_id)
        return self.projector(features, sentence.to(dtype))

    def encode(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, image_indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Encode images (B, 3, H, W) and tokens (B, L); return what `encode_text` and `encode_image` return.

        With `image_indices` (B,), there are N images; see `forward`.
        """
        if self.bridger is None:
            # Text first: the Dense Aligners need its hidden states.
            text_states, sentence = self.encode_text(input_ids)
            return text_states, sentence, self.encode_image(pixel_values, text_states, image_indices)
        if image_indices is not None:
            pixel_values = pixel_values[image_indices]
        grid = self._patch_grid(pixel_values)
        text_run = EncoderRun(self.text_model, **self._text_inputs(input_ids))
        image_run = EncoderRun(self.vision_model, **self._image_inputs(pixel_values))
        image_outputs, text_outputs = self.bridger.connect(image_run, text_run, grid)
        return *self._read_text(text_outputs, input_ids), self._read_image(image_outputs, grid)

    def encode_text(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode tokens (B, L) to text states (B, L, T) and sentence state (B, S).

        Raises:
            ValueError: the model has a Bridger, so that the text states depend on the image.
        """
        self._check_no_bridger()
        return self._read_text(self.text_model(**self._text_inputs(input_ids)), input_ids)

    def _text_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        check_tokens(input_ids, self.config.text_config.vocab_size)
        if not text_encoder(self.config.text_config).masks_padding:
            return {"input_ids": input_ids}
        return {"input_ids": input_ids, "attention_mask": (input_ids != self.config.pad_token_id).long()}

    def _read_text(self, outputs: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ends = end_positions(self.config.text_config, input_ids, self.config.pad_token_id)
        return outputs.last_hidden_state, sentence_state(self.text_model, self.config.text_config, outputs, ends)

    def encode_image(
        self, pixel_values: torch.Tensor, text_states: torch.Tensor, image_indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Encode images (B, 3, H, W), given text states (B, L, T), to feature maps of (B, C, h, w) each.

        With `image_indices` (B,), there are N images; see `forward`.

        Raises:
            ValueError: the model has a Bridger, so that both encoders run at the same time.
        """
        self._check_no_bridger()
        if image_indices is not None and self.block_hooks is None:
            pixel_values, image_indices = pixel_values[image_indices], None
        grid, inputs = self._patch_grid(pixel_values), self._image_inputs(pixel_values)
        adapters = getattr(self.vision_model, "peft_config", {})
        if any(getattr(adapter, "takes_text_states", False) for adapter in adapters.values()):
            inputs["text_states"] = text_states
        if self.block_hooks is not None:
            return _as_maps(self.block_hooks.run(self.vision_model, image_indices, **inputs), grid)
        return self._read_image(self.vision_model(output_hidden_states=True, **inputs), grid)

    def _image_inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        encoder = IMAGE_ENCODERS.get(self.config.vision_config.model_type, ImageEncoder())
        return {"pixel_values": pixel_values, **encoder.call}

    def _read_image(self, outputs: Any, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        # hidden_states[0] is the embedding: the output of block i is hidden_states[i + 1].
        states = [outputs.hidden_states[i + 1] for i in self.config.extract_layers] + [outputs.last_hidden_state]
        return _as_maps(states, grid)

    def _check_no_bridger(self) -> None:
        if self.bridger is not None:
            raise ValueError("expected a model without a Bridger, which connects both encoders; call encode instead.")

    def _patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values: expected sides that are multiples of the patch size {patch}, got {height}x{width} "
                "pixels; resize or pad the images."
            )
        return height // patch, width // patch


def _as_maps(states: list[torch.Tensor], grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Return the patches of states (B, N, C) as maps (B, C, h, w)."""
    # Prefix tokens (class, registers) come first in every backbone; the patches are the last h·w tokens.
    patches = (state[:, state.shape[1] - grid[0] * grid[1] :] for state in states)
    return tuple(state.transpose(1, 2).unflatten(2, grid) for state in patches)


AutoConfig.register(DetrisConfig.model_type, DetrisConfig)
AutoModel.register(DetrisConfig, DetrisForReferringSegmentation)
