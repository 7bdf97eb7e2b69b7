"""The predictor: images and sentences in any number to masks, scores and boxes.

Text enters the image encoder of DETRIS through the Dense Aligners. Sentences on the same image share its decoding and
letterboxing, and in a batch also the blocks before the first Dense Aligner; the other blocks run once per sentence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ..eval_mode import eval_mode
from ..image_inputs import as_list
from ..modeling import DetrisForReferringSegmentation
from ..modeling.casting import cast_model
from ..processing_detris import DetrisProcessor, check_processor
from ..text_cleaning import clean_sentence
from .compilation import check_compiler
from .devices import as_dtype, is_dispatched, usable_device, weight_device
from .image_loading import load_image
from .prediction import Prediction


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as the model reads it.

    Attributes:
        pixel_values: (3, h, w) float32 on the CPU, letterboxed and normalized.
        size: (H, W) of the image in pixels.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]


class DetrisPredictor:
    """Segments what sentences refer to in images. No gradients are tracked.

    Args:
        model: the model; moved to `device` and cast to `dtype`, except for BatchNorm, which stays in float32.
        processor: the processor that the model was trained with.
        device: such as "cuda:0"; default: the first accelerator (CUDA, MPS, ...), else the CPU. A model that
            accelerate has distributed over several devices is not moved.
        dtype: float32, bfloat16 or float16, as a torch dtype or by name; default: that of the model.
        batch_size: maximum number of sentences per forward pass.

    Raises:
        ValueError: model and processor do not belong together, or an argument is not accepted.
        TypeError: `model` or `processor` is something else.
    """

    def __init__(
        self,
        model: DetrisForReferringSegmentation,
        processor: DetrisProcessor,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
    ) -> None:
        for name, value, kind in (
            ("model", model, DetrisForReferringSegmentation),
            ("processor", processor, DetrisProcessor),
        ):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name}: expected a {kind.__name__}, got {type(value).__name__}; pass one, or call "
                    "DetrisPredictor.from_pretrained."
                )
        check_processor(model.config, processor)
        self.batch_size = checked_batch_size(batch_size)
        dtype = as_dtype(dtype)
        if not is_dispatched(model):
            placement: dict[str, Any] = {"device": usable_device(device)}
            model = model.to(**placement)
            cast_model(model, dtype)
        elif dtype not in (None, model.dtype):
            raise ValueError(
                f"dtype: expected {model.dtype}, that of a model that accelerate distributes, got {dtype}; pass it to "
                "from_pretrained instead."
            )
        self.model = model
        self.processor = processor
        self._pads_batches = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
        revision: str | None = None,
        subfolder: str = "",
        **kwargs: Any,
    ) -> DetrisPredictor:
        """Load model and processor from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: folder or Hub id written by `save_pretrained`, such as "runs/b/best".
            device, dtype, batch_size: see the class.
            revision: branch, tag or commit of the Hub repository.
            subfolder: folder of the checkpoint within it.
            kwargs: keyword arguments of [`DetrisForReferringSegmentation.from_pretrained`].

        Raises:
            OSError, ValueError: the checkpoint cannot be loaded; see `DetrisForReferringSegmentation.from_pretrained`.
        """
        device = None if kwargs.get("device_map") is not None else usable_device(device)
        located = {name: value for name, value in (("revision", revision), ("subfolder", subfolder)) if value}
        shared = {name: kwargs[name] for name in ("token", "cache_dir", "local_files_only") if name in kwargs}
        processor = DetrisProcessor.from_pretrained(pretrained_model_name_or_path, **located, **shared)
        if (dtype := as_dtype(dtype)) is not None:
            kwargs["dtype"] = dtype
        model = DetrisForReferringSegmentation.from_pretrained(pretrained_model_name_or_path, **located, **kwargs)
        return cls(model, processor, device=device, dtype=dtype, batch_size=batch_size)

    def compile(self) -> None:
        """Compile the model in place with `torch.compile`, on the first batch.

        Batches are then padded to `batch_size`, with one image per sentence, so that the model is compiled only once
        per canvas size. That pays off for many predictions.

        Raises:
            ValueError: the device has no compiler.
        """
        check_compiler(weight_device(self.model.projector))
        self.model.compile()
        self._pads_batches = True

    def __call__(
        self, images: Any, text: Any, threshold: float | None = None, return_probabilities: bool = False
    ) -> Any:
        """Segment what each sentence refers to.

        Args:
            images: one image, or a list or other iterable of images, see `load_image`: paths, http(s) URLs, PIL
                images, arrays, tensors.
            text: for one image a sentence or a list of sentences. For several images a sentence, which is used for
                each of them, or a list with one entry per image: a sentence or a list of sentences.
            threshold: probability above which a pixel is foreground; default: the checkpoint's.
            return_probabilities: keep the probability maps.

        Returns:
            A [`Prediction`] for one image and one sentence; a list in the order of the sentences for one image and a
            list of sentences; a list in the order of the images for several images, whose entries are predictions,
            or lists where the entry of `text` is a list.

        Raises:
            ValueError: an image or a sentence is invalid, or the numbers of images and entries of `text` differ.
            TypeError: an image or a sentence has an unsupported type.
            OSError: an image cannot be read or downloaded.
        """
        listed = as_list(images) or []
        is_batch = images is not None and not (len(listed) == 1 and listed[0] is images)
        if not listed:
            raise ValueError("images: expected at least one image, got none; pass one or more")
        per_image = _sentences_per_image(text, len(listed), is_batch)
        for i, sentences in enumerate(per_image):
            for sentence in sentences if isinstance(sentences, list) else [sentences]:
                clean_sentence(sentence, "text" if not is_batch else f"text[{i}]")
        pairs = (
            (image, sentence)
            for image, sentences in zip(listed, per_image, strict=True)
            for sentence in (sentences if isinstance(sentences, list) else [sentences])
        )
        predictions = self._stream(pairs, threshold, return_probabilities, reuse_objects=True)
        results = [
            [*islice(predictions, len(sentences))] if isinstance(sentences, list) else next(predictions)
            for sentences in per_image
        ]
        return results if is_batch else results[0]

    def stream(
        self, pairs: Iterable[tuple[Any, str]], threshold: float | None = None, return_probabilities: bool = False
    ) -> Iterator[Prediction]:
        """Yield a prediction per pair of an image and a sentence, in order. At most `batch_size` pairs are in memory.

        Consecutive pairs with the same path or URL are decoded and letterboxed once; in a list or tuple also those
        with the same object. A generator may change an object and yield it again, such as a buffer for frames.

        Args:
            pairs: images, see `load_image`, and sentences.
            threshold, return_probabilities: see `__call__`.
        """
        yield from self._stream(pairs, threshold, return_probabilities, isinstance(pairs, (list, tuple)))

    def _stream(
        self,
        pairs: Iterable[tuple[Any, str]],
        threshold: float | None,
        return_probabilities: bool,
        reuse_objects: bool,
    ) -> Iterator[Prediction]:
        prepared = self._prepared_pairs(pairs, reuse_objects)
        while batch := [*islice(prepared, self.batch_size)]:
            yield from self.predict_batch(batch, threshold, return_probabilities)

    def predict_batch(
        self, pairs: Sequence[tuple[Any, str]], threshold: float | None = None, return_probabilities: bool = False
    ) -> list[Prediction]:
        """Return a prediction per pair of an image and a sentence, in one forward pass per canvas size.

        The canvas is always the same unless the processor has `keep_aspect_ratio`.

        Args:
            pairs: images, see `load_image`, or prepared ones, see [`PreparedImage`], and sentences.
            threshold, return_probabilities: see `__call__`.
        """
        threshold = self.processor.mask_threshold if threshold is None else threshold
        prepared = [*self._prepared_pairs(pairs, reuse_objects=True)]
        canvases: dict[tuple[int, ...], list[int]] = {}
        for i, (image, _) in enumerate(prepared):
            canvases.setdefault(tuple(image.pixel_values.shape), []).append(i)
        predictions: dict[int, Prediction] = {}
        for rows in canvases.values():
            images = [prepared[row][0] for row in rows]
            sentences = [prepared[row][1] for row in rows]
            logits = self._logits(images, sentences)
            for row, image, sentence, logit in zip(rows, images, sentences, logits, strict=True):
                # One by one: the maps of a batch of photos can take gigabytes.
                probabilities = self.processor.post_process_referring_segmentation(
                    logit[None], [image.size], threshold, return_probabilities=True
                )[0]
                predictions[row] = Prediction.from_probabilities(
                    sentence, probabilities.numpy(), threshold, return_probabilities
                )
        return [predictions[row] for row in range(len(prepared))]

    def prepare(self, image: Any) -> PreparedImage:
        """Decode and letterbox an image, see `load_image`.

        Raises:
            ValueError, TypeError, OSError: see `load_image`.
        """
        features = self.processor.image_processor(load_image(image))
        height, width = features["target_sizes"][0].tolist()
        return PreparedImage(features["pixel_values"][0], (height, width))

    def _prepared_pairs(
        self, pairs: Iterable[tuple[Any, str]], reuse_objects: bool
    ) -> Iterator[tuple[PreparedImage, str]]:
        """Prepare each image once per series of consecutive pairs with this image.

        Without `reuse_objects`, only paths and URLs are recognized: the content of an object may have changed.
        """
        last: Any = None
        last_identity: Any = None
        prepared: PreparedImage | None = None
        for image, sentence in pairs:
            if isinstance(image, PreparedImage):
                yield image, sentence
                continue
            identity = _identity(image)
            is_same = (reuse_objects and image is last) if identity is None else identity == last_identity
            if prepared is None or not is_same:
                last, last_identity, prepared = image, identity, self.prepare(image)
            yield prepared, sentence

    @torch.no_grad()
    def _logits(self, images: Sequence[PreparedImage], sentences: Sequence[str]) -> torch.Tensor:
        """Return logits (B, 1, h', w') in float32 on the CPU."""
        count = len(sentences)
        if self._pads_batches:
            padding = self.batch_size - count
            images, sentences = [*images, *[images[0]] * padding], [*sentences, *[sentences[0]] * padding]
        inputs = self.processor(text=[*sentences])
        distinct = {image: i for i, image in enumerate(dict.fromkeys(images))}
        indices = None
        if len(distinct) < len(images) and not self._pads_batches:
            indices = torch.tensor([distinct[image] for image in images])
        pixel_values = torch.stack([image.pixel_values for image in (images if indices is None else distinct)])
        # The head's: accelerate moves the inputs of encoders that it has distributed.
        device = weight_device(self.model.projector)
        with eval_mode(self.model):
            outputs = self.model(
                pixel_values.to(device),
                inputs["input_ids"].to(device),
                image_indices=None if indices is None else indices.to(device),
            )
        return outputs.logits[:count].float().cpu()


def _identity(image: Any) -> Any:
    """Return what distinguishes a path or URL from others, and a file from one that replaces it; else None."""
    if not isinstance(image, (str, os.PathLike)):
        return None
    path = os.fspath(image)
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a URL, or no such file
        return path, None
    return path, (status.st_ino, status.st_size, status.st_mtime_ns)


def _sentences_per_image(text: Any, count: int, is_batch: bool) -> list[Any]:
    """Return a sentence, or a list of sentences, per image."""
    if not is_batch:
        entries = [text if isinstance(text, str) else as_list(text) or []]
    elif isinstance(text, str):
        entries = [text] * count
    else:
        entries = [entry if isinstance(entry, str) else as_list(entry) or [] for entry in as_list(text) or []]
        if len(entries) != count:
            raise ValueError(
                f"text: expected one sentence, or one entry per image, got {len(entries)} entries for {count} images; "
                "pass as many"
            )
    for i, entry in enumerate(entries):
        if not entry:
            where = f"text[{i}]" if is_batch else "text"
            raise ValueError(f"{where}: expected a sentence or several, got none; pass a non-empty expression")
    return entries


def checked_batch_size(batch_size: Any) -> int:
    """Return the batch size; raise a ValueError unless it is an integer of at least 1."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer of at least 1, got {batch_size!r:.80}; change it.")
    return batch_size
