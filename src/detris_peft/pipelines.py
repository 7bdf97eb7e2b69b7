"""The pipeline of transformers for referring image segmentation, registered when this module is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from itertools import islice
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import torch
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import ChunkPipeline

from .image_inputs import as_list
from .modeling import DetrisForReferringSegmentation
from .text_cleaning import clean_sentence

# `prediction` is imported where it is used: it takes a second, and this module is imported with transformers.
if TYPE_CHECKING:
    from .prediction import Prediction, PreparedImage

TASK = "referring-image-segmentation"
_FORMS = 'an image with text="...", or {"image": ..., "text": ...}, or a list of either'


class ReferringImageSegmentationPipeline(ChunkPipeline):
    """Segments what sentences refer to in images, with the code of [`DetrisPredictor`].

    Example::

        import detris_peft  # registers the pipeline
        from transformers import pipeline

        pipe = pipeline("referring-image-segmentation", model="runs/b/best")
        pipe("photo.jpg", text="the red mug on the left")
        # [{"score": 0.93, "label": "the red mug on the left", "mask": <PIL.Image.Image mode=L size=640x480>}]

    Args:
        model: a [`DetrisForReferringSegmentation`].
        processor: the processor that the model was trained with.
        device: as in transformers; default: the first accelerator, else the CPU.
        dtype: float32, bfloat16 or float16; "auto" or None: that of the model.
        batch_size: maximum number of sentences per forward pass.
        kwargs: `threshold`, see `__call__`, and other arguments of `transformers.Pipeline`.

    Raises:
        ValueError: model and processor do not belong together, or an argument is not accepted.
        TypeError: `model` or `processor` is something else.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(
        self,
        model: DetrisForReferringSegmentation,
        processor: Any = None,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        from .prediction import DetrisPredictor, usable_device
        from .prediction.devices import is_dispatched, weight_device

        moved: Any = model
        if is_dispatched(model) and not hasattr(model, "hf_device_map"):
            # Only encoders have one. With it, transformers does not move the model, whose device may be "meta".
            moved = copy(model)
            moved.hf_device_map = {"": weight_device(model.projector)}
            device = None if str(device) == "meta" else device  # chosen by `transformers.pipeline`
        elif isinstance(device, (str, torch.device)):
            device = usable_device(device)
        super().__init__(model=moved, processor=processor, device=device, **kwargs)  # type: ignore[arg-type]
        self.model = model
        dtype = None if dtype == "auto" else dtype
        self.predictor = DetrisPredictor(model, processor, device=self.device, dtype=dtype, batch_size=batch_size)
        self._batch_size = self.predictor.batch_size

    def __call__(self, image: Any, text: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Segment what each sentence refers to.

        Args:
            image: an image: path, http(s) URL, PIL image, NumPy array or torch tensor, see
                [`detris_peft.prediction.load_image`]. Or `{"image": ..., "text": ...}`, where `text` is a sentence or
                a list of sentences. Or a list, generator or dataset of either. URLs in a dataset are not downloaded.
            text: a sentence, or for one image a list of sentences. For several images a sentence, which is used for
                each of them, or for a list of images a list with one entry per image.
            kwargs: `threshold` (probability above which a pixel is foreground; default: the checkpoint's) and
                `batch_size` (maximum number of sentences per forward pass). `num_workers` has no effect.

        Returns:
            For one image a list with a dict per sentence, in their order: `score` (mean probability inside the mask,
            in [0, 1]; 0.0 for an empty mask), `label` (the sentence) and `mask` (PIL image of mode "L" and the size of
            the image, with values 0 and 255). For a list of images a list of such lists. For a generator or a dataset
            an iterator over such lists, which reads images as it proceeds.

        Raises:
            ValueError: an image or a sentence is invalid or missing.
            TypeError: an image or a sentence has an unsupported type.
            OSError: an image cannot be read or downloaded.
        """
        from .prediction.image_loading import IMAGE_TYPES

        if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4:
            items = [*image]
            if text is not None and not isinstance(text, str):
                items, text = _with_text(items, as_list(text) or []), None
            return super().__call__(items, text=text, **kwargs) if items else []
        if isinstance(image, (*IMAGE_TYPES, Mapping)):
            return super().__call__(image, text=text, **kwargs)
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"text: expected one sentence for all images of a {type(image).__name__}, got {type(text).__name__}; "
                'yield {"image": ..., "text": ...} instead.'
            )
        urls = isinstance(image, GeneratorType)
        return super().__call__(_rows(image), text=text, allow_urls=urls, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: kwargs.pop(name) for name in ("text", "allow_urls") if name in kwargs}
        forward = {name: kwargs.pop(name) for name in ("threshold",) if name in kwargs}
        if kwargs:
            raise TypeError(
                f"pipeline: expected text, threshold and batch_size, got {', '.join(sorted(kwargs))}; remove it."
            )
        return preprocess, forward, {}

    def preprocess(  # type: ignore[override]
        self, input_: Any, text: Any = None, allow_urls: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Yield an item per sentence; the image is decoded and letterboxed once."""
        from .prediction import load_image

        image, sentences = _image_and_sentences(input_, text)
        prepared = self.predictor.prepare(image if allow_urls else load_image(image, allow_urls=False))
        for i, sentence in enumerate(sentences):
            yield {"image": prepared, "text": sentence, "is_last": i == len(sentences) - 1}

    def _forward(self, input_tensors: Any, threshold: float | None = None) -> Any:
        pairs: list[tuple[PreparedImage, str]] = [(item["image"], item["text"]) for item in input_tensors]
        predictions = self.predictor.predict_batch(pairs, threshold)
        return [
            {"prediction": prediction, "is_last": item["is_last"]}
            for prediction, item in zip(predictions, input_tensors, strict=True)
        ]

    def postprocess(self, model_outputs: Any) -> list[dict[str, Any]]:
        return [_as_dict(output["prediction"]) for output in model_outputs]

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        """Yield the results per image. Batches are cut from the sentences of consecutive images, as in `stream`."""
        # Not the loader of transformers, which cannot batch images whose canvases differ (keep_aspect_ratio).
        from .prediction.predictor import checked_batch_size

        checked_batch_size(batch_size)
        items = (item for input_ in inputs for item in self.preprocess(input_, **preprocess_params))
        outputs: list[dict[str, Any]] = []
        while batch := [*islice(items, batch_size)]:
            forwarded: Any = self.forward(batch, **forward_params)
            for output in forwarded:
                outputs.append(output)
                if output["is_last"]:
                    yield self.postprocess(outputs, **postprocess_params)
                    outputs = []

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model and its processor; see [`DetrisForReferringSegmentation.save_pretrained`]."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.predictor.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the model, then its processor; see [`DetrisForReferringSegmentation.push_to_hub`]."""
        model: Any = self.model
        pushed = model.push_to_hub(repo_id, **kwargs)
        self.predictor.processor.push_to_hub(repo_id, **kwargs)
        return pushed


def _rows(dataset: Any) -> Iterator[Any]:
    """Yield the items of a generator, another iterable, or a dataset with `__len__` and `__getitem__`."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[i] for i in range(len(dataset)))
    if not isinstance(dataset, Iterable):
        raise TypeError(f"image: expected {_FORMS}, got {type(dataset).__name__}; pass one of these.")
    return (item for item in dataset)


def _with_text(images: list[Any], text: list[Any]) -> list[dict[str, Any]]:
    """Return an item per image with its entry of `text`."""
    if len(text) != len(images):
        raise ValueError(
            f"text: expected one sentence, or one entry per image, got {len(text)} entries for {len(images)} images; "
            "pass as many."
        )
    return [{"image": image, "text": entry} for image, entry in zip(images, text, strict=True)]


def _image_and_sentences(item: Any, text: Any) -> tuple[Any, list[str]]:
    """Return the image of an item, and its sentences; `text` is for items without a text of their own."""
    image = item
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ValueError(f"image: expected {_FORMS}, got {{{', '.join(map(repr, item))}}}; add the image.")
        image, text = item["image"], item.get("text", text)
    sentences = [text] if isinstance(text, str) else as_list(text) or []
    if not sentences:
        raise ValueError('text: expected a sentence or several, got none; pass text="..." or add it to the image.')
    for sentence in sentences:
        clean_sentence(sentence, "text")
    return image, sentences


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {"score": prediction.score, "label": prediction.text, "mask": prediction.mask_image()}


def register() -> None:
    """Make `transformers.pipeline` know the task. Repeated calls have no effect."""
    registered = PIPELINE_REGISTRY.supported_tasks.get(TASK)
    if registered is None or registered["impl"] is not ReferringImageSegmentationPipeline:
        PIPELINE_REGISTRY.supported_tasks.pop(TASK, None)  # transformers warns if a task exists, as after a reload
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ReferringImageSegmentationPipeline, pt_model=DetrisForReferringSegmentation, type="multimodal"
        )


register()
