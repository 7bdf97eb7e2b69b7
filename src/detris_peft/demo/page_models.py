"""The models of the page: predictions for an uploaded image, with probability maps kept for the next threshold."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..image_inputs import to_rgb
from ..images import decode, open_header
from ..prediction import DetrisPredictor, Prediction
from ..text_cleaning import clean_sentence
from .limits import CACHE_BYTES, DemoLimits


class PageModel:
    """A predictor with a title and a bounded cache of probability maps. One request at a time may use it.

    Args:
        title: what the page calls the checkpoint.
        predictor: the predictor.
        cache_bytes: size of the cache.

    Attributes:
        forward_sentences: number of sentences that the model has segmented; those from the cache are not counted.
    """

    def __init__(self, title: str, predictor: DetrisPredictor, cache_bytes: int = CACHE_BYTES) -> None:
        self.title = title
        self.predictor = predictor
        self.forward_sentences = 0
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[bytes, str], np.ndarray] = OrderedDict()

    @property
    def threshold(self) -> float:
        """The checkpoint's own threshold."""
        return float(self.predictor.processor.mask_threshold)

    def predict(
        self, image: Image.Image, digest: bytes, sentences: Sequence[str], threshold: float
    ) -> list[Prediction]:
        """Return a prediction per sentence.

        Args:
            image: the image.
            digest: hash of the image file; key of its probability maps in the cache.
            sentences: the sentences.
            threshold: probability above which a pixel is foreground.
        """
        missing = [*dict.fromkeys(text for text in sentences if (digest, text) not in self._cache)]
        found: dict[str, Prediction] = {}
        for text in sentences:  # first, because adding others may remove these from the cache
            if text not in missing and text not in found:
                self._cache.move_to_end((digest, text))
                found[text] = Prediction.from_probabilities(text, self._cache[digest, text], threshold)
        self.forward_sentences += len(missing)
        for prediction in self.predictor.stream(((image, text) for text in missing), threshold, True):
            self._keep((digest, prediction.text), prediction.probabilities)
            found[prediction.text] = Prediction(
                prediction.text, prediction.mask, prediction.score, prediction.box
            )  # without its probabilities, which take four times as much memory as the mask
        return [found[text] for text in sentences]

    def _keep(self, key: tuple[bytes, str], probabilities: np.ndarray | None) -> None:
        if probabilities is None or probabilities.nbytes > self._cache_bytes:
            return
        self._cache[key] = probabilities
        while sum(map_.nbytes for map_ in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)


def read_sentences(text: str, limits: DemoLimits) -> list[str]:
    """Return the sentences of a text with one sentence per line. Blank lines are skipped.

    Raises:
        ValueError: there is none, there are too many, or one is too long.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError("Sentences: expected at least one sentence, got none; describe an object in the image.")
    if len(lines) > limits.max_sentences:
        raise ValueError(f"Sentences: expected at most {limits.max_sentences}, got {len(lines)} lines; remove some.")
    for i, line in enumerate(lines, start=1):
        clean_sentence(line, f"Sentence {i}")
        if len(line) > limits.max_characters:
            raise ValueError(
                f"Sentence {i}: expected at most {limits.max_characters} characters, got {len(line)}; shorten it."
            )
    return lines


def read_image(file: str, name: str, limits: DemoLimits) -> tuple[Image.Image, bytes]:
    """Return an uploaded image in RGB, upright, and the SHA-256 of its file.

    Args:
        file: path of the uploaded file.
        name: its name, for messages.
        limits: the limits of the page.

    Raises:
        ValueError: it is not an image, is damaged, or has too many pixels.
    """
    content = Path(file).read_bytes()
    with open_header(content, name) as image:
        pixels, limit = image.width * image.height, limits.max_megapixels * 1_000_000
        if pixels > limit:
            raise ValueError(f"{name}: expected an image of at most {limit:,} pixels, got {pixels:,}; scale it down.")
        return Image.fromarray(to_rgb(decode(image, name), name)), hashlib.sha256(content).digest()
