"""Processor of DETRIS: images, sentences and masks to model inputs, and logits back to masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessorMixin

from .defaults import MAX_TEXT_LENGTH
from .image_processing_detris import DetrisImageProcessor, as_list, as_sizes, check_counts
from .tokenization_detris import clean_sentence


def _image_processor_field(name: str) -> Any:
    """Return a property that reads and writes a field of the image processor."""
    return property(
        lambda processor: getattr(processor.image_processor, name),
        lambda processor, value: setattr(processor.image_processor, name, value),
        doc=f"See `DetrisImageProcessor.{name}`.",
    )


class DetrisProcessor(ProcessorMixin):
    """Combines a [`DetrisImageProcessor`] and the tokenizer of the text encoder.

    Args:
        tokenizer: tokenizer of the text encoder. Its own padding is not used: see `pad_token_id`.
        image_processor: the image processor; default: one built from the fields below.
        max_text_length: L, maximum number of tokens per sentence, start and end token included. Longer sentences are
            truncated and keep the end token.
        pad_token_id: id that pads a sentence to L tokens. 0 for CLIP, whose Hugging Face tokenizer would pad with the
            end token and thus hide where the sentence ends.
        image_size, mask_threshold, keep_aspect_ratio, patch_size, image_mean, image_std: fields of
            [`DetrisImageProcessor`], also readable and settable as attributes; default: those of `image_processor`.
    """

    # `ProcessorMixin.from_pretrained` passes the tokenizer and the image processor by position, in this order.
    def __init__(
        self,
        tokenizer,
        image_processor: DetrisImageProcessor | None = None,
        max_text_length: int = MAX_TEXT_LENGTH,
        pad_token_id: int = 0,
        image_size: int | None = None,
        mask_threshold: float | None = None,
        keep_aspect_ratio: bool | None = None,
        patch_size: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        fields = {
            "image_size": image_size,
            "mask_threshold": mask_threshold,
            "keep_aspect_ratio": keep_aspect_ratio,
            "patch_size": patch_size,
            "image_mean": image_mean,
            "image_std": image_std,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        if image_processor is None:
            image_processor = DetrisImageProcessor(**fields)
        elif fields:  # a copy, so that the caller's image processor does not change
            image_processor = DetrisImageProcessor(**{**image_processor.to_dict(), **fields})
        super().__init__(tokenizer, image_processor)
        self.max_text_length = max_text_length
        self.pad_token_id = pad_token_id

    image_size: int = _image_processor_field("image_size")
    mask_threshold: float = _image_processor_field("mask_threshold")
    keep_aspect_ratio: bool = _image_processor_field("keep_aspect_ratio")
    patch_size: int = _image_processor_field("patch_size")
    image_mean: list[float] = _image_processor_field("image_mean")
    image_std: list[float] = _image_processor_field("image_std")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "DetrisProcessor":
        """Load a processor from a folder or a Hub repository, as in transformers.

        Folders written before 0.1.0, in which the fields of the image processor are not nested, load as well.

        Raises:
            FileNotFoundError: a local folder lacks one of the processor's files. transformers would silently use
                defaults, with which the model was not trained.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            for name in ("processor_config.json", "tokenizer.json"):
                if not (folder / kwargs.get("subfolder", "") / name).is_file():
                    raise FileNotFoundError(
                        f"{folder}: expected the processor's {name}, got none; write it with "
                        "DetrisProcessor.save_pretrained."
                    )
        fields, options = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "image_size" in fields:  # written before 0.1.0
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
            return cls.from_args_and_dict([tokenizer], fields, **options)  # type: ignore[return-value]
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config, tokenizer) -> "DetrisProcessor":
        """Return the processor for a `DetrisConfig` and the tokenizer of its text encoder."""
        return cls(
            tokenizer,
            image_size=config.image_size,
            max_text_length=config.max_text_length,
            mask_threshold=config.mask_threshold,
            pad_token_id=config.pad_token_id,
            patch_size=config.vision_config.patch_size,
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model inputs that the processor returns."""
        return ["pixel_values", "input_ids", "labels"]

    def __call__(
        self, images=None, text=None, masks=None, return_tensors: str | None = "pt", original_sizes=None
    ) -> BatchFeature:
        """Prepare one image and sentence, or B of each. Either may be omitted.

        Args:
            images: image or list of images, see [`DetrisImageProcessor.preprocess`].
            text: sentence or list of sentences, one per image.
            masks: mask or list of masks, one per image.
            return_tensors: "pt" or "np"; None leaves NumPy arrays.
            original_sizes: (B,2), the (H,W) of the files, for images that a JPEG decoder reduced.

        Returns:
            `pixel_values` (B,3,h,w), `target_sizes` (B,2) and `labels` (B,h,w), see
            [`DetrisImageProcessor.preprocess`], and `input_ids` (B,L) int64.

        Raises:
            ValueError: the numbers of images, sentences and masks differ, a sentence is empty, or an image or a mask
                is invalid.
            TypeError: an item has an unsupported type.
        """
        images, text, masks = as_list(images), as_list(text), as_list(masks)
        original_sizes = as_sizes(original_sizes)
        check_counts(images=images, text=text, masks=masks, original_sizes=original_sizes)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, masks=masks, return_tensors=None, original_sizes=original_sizes))
        if text is not None:
            data["input_ids"] = self._tokenize(text)
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_referring_segmentation(
        self, outputs, target_sizes, threshold: float | None = None, return_probabilities: bool = False
    ) -> list[torch.Tensor]:
        """Convert logits to masks; see [`DetrisImageProcessor.post_process_referring_segmentation`]."""
        return self.image_processor.post_process_referring_segmentation(
            outputs, target_sizes, threshold, return_probabilities
        )

    def is_visible(self, mask: np.ndarray) -> bool:
        """Return whether any foreground of a mask (H, W) survives the letterbox on the square canvas."""
        return self.image_processor.is_visible(mask)

    def canvas_size(self, sizes) -> tuple[int, int]:
        """Return the (h, w) of `pixel_values` for a batch of images of these (H, W)."""
        return self.image_processor.canvas_size(sizes)

    def _tokenize(self, sentences: list[str]) -> np.ndarray:
        """Convert B sentences to int64 (B,L): start token, tokens, end token, padding."""
        cleaned = [clean_sentence(sentence, f"text[{i}]") for i, sentence in enumerate(sentences)]
        input_ids = np.full((len(cleaned), self.max_text_length), self.pad_token_id, dtype=np.int64)
        for row, ids in zip(input_ids, self.tokenizer(cleaned)["input_ids"], strict=True):
            if len(ids) > self.max_text_length:
                # The model reads the sentence embedding at the end token.
                ids = [*ids[: self.max_text_length - 1], ids[-1]]
            row[: len(ids)] = ids
        return input_ids
