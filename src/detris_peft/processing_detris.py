"""Processor of DETRIS: images, sentences and masks to model inputs, and logits back to masks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessorMixin

from .defaults import MAX_TEXT_LENGTH
from .errors import check_path, one_line
from .field_types import has_type
from .image_inputs import as_list, as_sizes, check_counts
from .image_processing_detris import FIELDS as IMAGE_FIELDS
from .image_processing_detris import DetrisImageProcessor
from .safe_loading import read_json
from .text_cleaning import clean_sentence
from .tokenization_detris import has_vocabulary


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
        _check_text_fields(max_text_length=max_text_length, pad_token_id=pad_token_id)
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
            FileNotFoundError: the folder or repository lacks one of the processor's files. transformers would silently
                use defaults, with which the model was not trained.
            OSError: `processor_config.json` lacks a field, or has one of a wrong type or value.
            ValueError: a file is damaged.
        """
        check_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
        name, folder = pretrained_model_name_or_path, Path(pretrained_model_name_or_path)
        kwargs["trust_remote_code"] = False  # otherwise transformers asks on standard input whether to run code
        if folder.is_dir():
            folder = folder / kwargs.get("subfolder", "")
            is_complete = {
                "processor_config.json": (folder / "processor_config.json").is_file(),
                "tokenizer.json": folder.is_dir() and has_vocabulary(folder),  # or the file of a slow tokenizer
            }
            for file, is_present in is_complete.items():
                if not is_present:
                    raise FileNotFoundError(
                        f"{folder}: expected the processor's {file}, got none; write it with "
                        "DetrisProcessor.save_pretrained."
                    )
            content = read_json(folder / "processor_config.json")
            if not isinstance(content, dict):
                raise ValueError(
                    f"{folder / 'processor_config.json'}: expected an object with the processor's fields, got a "
                    f"{type(content).__name__}; copy or download the file again."
                )
        with _as_one_line(name):
            fields, options = cls.get_processor_dict(name, **kwargs)
        if not fields and not folder.is_dir():
            raise FileNotFoundError(
                f"{name}: expected the processor's processor_config.json, got none; write it with "
                "DetrisProcessor.save_pretrained, and upload it."
            )
        _check_saved_fields(f"{name}: processor_config.json", fields)
        with _as_one_line(name):
            if "image_size" in fields:  # written before 0.1.0
                tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
                return cls.from_args_and_dict([tokenizer], fields, **options)  # type: ignore[return-value]
            return super().from_pretrained(name, **kwargs)

    @classmethod
    def from_config(cls, config, tokenizer) -> "DetrisProcessor":
        """Return the processor for a `DetrisConfig` and the tokenizer of its text encoder.

        Raises:
            ValueError: the tokenizer does not belong to the text encoder, or the sizes do not fit the backbones.
            TypeError: the config is something else.
        """
        if getattr(config, "model_type", None) != "detris":
            raise TypeError(f"config: expected a DetrisConfig, got {type(config).__name__}; pass model.config.")
        config.check_inputs()
        config.check_tokenizer(tokenizer)
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
        self,
        images=None,
        text=None,
        masks=None,
        return_tensors: str | None = "pt",
        original_sizes=None,
        as_bytes: bool = False,
    ) -> BatchFeature:
        """Prepare one image and sentence, or B of each. Either may be omitted.

        An image with several sentences gives a row per sentence, and is decoded and letterboxed once. The model runs
        once per row: text enters the image encoder, so that only the input is shared.

        Args:
            images: image or list of images, see [`DetrisImageProcessor.preprocess`].
            text: sentence or list of sentences, one per image; for one image any number of sentences; for several
                images also a list of lists, the sentences of each image. B is the number of sentences.
            masks: mask or list of masks, one per sentence.
            return_tensors: "pt" or "np"; None leaves NumPy arrays.
            original_sizes: the (H,W) of the file of each image, for images that a JPEG decoder reduced.
            as_bytes: return uint8 that `normalize_bytes` converts to `pixel_values` and `labels`; see
                [`DetrisImageProcessor.preprocess`].

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
        if original_sizes is not None:
            check_counts(images=images, original_sizes=original_sizes)
        text, rows = _image_rows(images, text)
        if rows is not None and images is not None and masks is not None:  # a mask is warped with its image
            if len(masks) != len(rows):
                raise ValueError(
                    f"masks: expected one mask per sentence, got {len(masks)} for {len(rows)}; pass the same number"
                )
            images = [images[row] for row in rows]
            original_sizes = original_sizes and [original_sizes[row] for row in rows]
            rows = None
        check_counts(images=images if rows is None else rows, text=text, masks=masks)
        data: dict[str, Any] = {}
        if images is not None:
            options = {"return_tensors": None, "original_sizes": original_sizes, "as_bytes": as_bytes}
            data.update(self.image_processor(images, masks=masks, **options))
            if rows is not None:
                data = {name: values[rows] for name, values in data.items()}
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

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, threshold: float | None = None
    ) -> list[torch.Tensor]:
        """Convert logits to 0 and 1; see [`DetrisImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(outputs, target_sizes, threshold)

    def post_process_instance_segmentation(
        self, outputs, threshold: float = 0.3, mask_threshold: float | None = None, target_sizes=None
    ) -> list[dict[str, torch.Tensor]]:
        """Convert logits to instances; see [`DetrisImageProcessor.post_process_instance_segmentation`]."""
        return self.image_processor.post_process_instance_segmentation(
            outputs, threshold, mask_threshold, target_sizes
        )

    def normalize_bytes(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Convert `pixel_bytes` and `label_bytes`; see [`DetrisImageProcessor.normalize`]."""
        return self.image_processor.normalize_bytes(inputs)

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


def check_processor(config, processor: DetrisProcessor) -> None:
    """Raise a ValueError if a processor does not belong to a model.

    Args:
        config: the model's [`DetrisConfig`].
        processor: the processor.
    """
    names = ("image_size", "max_text_length", "pad_token_id")
    expected = {name: getattr(config, name) for name in names}
    if processor.keep_aspect_ratio:
        expected["patch_size"] = config.vision_config.patch_size
    for name, value in expected.items():
        if getattr(processor, name) != value:
            raise ValueError(
                f"processor: expected {name}={value}, as in the model's config, got {getattr(processor, name)}; use "
                "the processor that was saved with the model, or DetrisProcessor.from_config(model.config, tokenizer)."
            )
    config.check_inputs()
    config.check_tokenizer(processor.tokenizer)


def _image_rows(images: list | None, text: list | None) -> tuple[list | None, list[int] | None]:
    """Return the sentences in one list, and the image index of each; None: image i has sentence i.

    Raises:
        ValueError: the numbers of images and entries of `text` differ.
    """
    if images is None or text is None or not images:
        return text, None
    if len(images) == 1 and len(text) > 1 and not any(isinstance(entry, (list, tuple)) for entry in text):
        return text, [0] * len(text)
    if not any(isinstance(entry, (list, tuple)) for entry in text):
        return text, None
    if len(text) != len(images):
        raise ValueError(
            f"text: expected one sentence or list of sentences per image, got {len(text)} for {len(images)} images; "
            "pass as many"
        )
    per_image = [as_list(entry) or [] for entry in text]
    for i, sentences in enumerate(per_image):
        if not sentences:
            raise ValueError(f"text[{i}]: expected a sentence or several, got an empty list; pass one or more")
    rows = [i for i, sentences in enumerate(per_image) for _ in sentences]
    return [sentence for sentences in per_image for sentence in sentences], rows


_TEXT_FIELDS = {"max_text_length": 2, "pad_token_id": 0}  # integers, with their minimum


@contextmanager
def _as_one_line(name: Any) -> Iterator[None]:
    """Turn the errors of transformers and tokenizers into one line."""
    try:
        yield
    except Exception as error:  # the tokenizers library raises plain exceptions for damaged files
        kind = OSError if isinstance(error, OSError) else ValueError
        reason = one_line(error, first_line=True).rstrip(". ")
        raise kind(
            f"{name}: the processor cannot be loaded ({reason}); copy or download its files again, or check the name."
        ) from error


def _check_saved_fields(where: str, fields: dict[str, Any]) -> None:
    """Raise an OSError, as transformers does, if a field is missing or invalid."""
    nested = fields.get("image_processor")
    values = {**fields, **(nested if isinstance(nested, dict) else {})}
    for name in (*IMAGE_FIELDS, *_TEXT_FIELDS):  # all of them are always saved
        if name not in values:
            raise OSError(
                f"{where}: expected {name}, as DetrisProcessor writes it for the image processor and the tokenizer, "
                "got none; copy or download the file again."
            )
    try:
        DetrisImageProcessor(**{name: values[name] for name in IMAGE_FIELDS})
        _check_text_fields(**{name: values[name] for name in _TEXT_FIELDS})
    except ValueError as error:
        raise OSError(f"{where}: {error}") from None


def _check_text_fields(**values: Any) -> None:
    for name, minimum in _TEXT_FIELDS.items():
        if not has_type(values[name], int) or values[name] < minimum:
            raise ValueError(f"{name}: expected int, at least {minimum}, got {values[name]!r:.80}; correct it.")
