"""From rows to batches: which reference is visited when, with which of its sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .columns import decode_row


@dataclass
class Sample:
    """One picture, one sentence, and the mask it refers to: (H, W) of uint8 0/1."""

    image: Image.Image
    sentence: str
    mask: np.ndarray
    ref_id: int


class TrainingSamples(Dataset):
    """One epoch: every reference once, in random order, with one of its sentences drawn at random.

    Order and sentences depend on seed and epoch alone, not on workers or processes, so an epoch can be repeated.

    Args:
        rows: a data set with the columns of `FEATURES`.
        seed: of the draws.
    """

    def __init__(self, rows: datasets.Dataset, seed: int = 0) -> None:
        self.rows = _undecoded(rows)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before iterating (a data loader of accelerate does)."""
        rng = np.random.default_rng([self.seed, epoch])
        self.order = rng.permutation(len(self.rows))
        self.draws = rng.random(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[int(self.order[index])]
        sentences = row["sentences"]
        return _sample(row, sentences[int(self.draws[index] * len(sentences))])


class EvaluationSamples(Dataset):
    """References in their own order, with their first sentence or with each of them.

    Args:
        rows: a data set with the columns of `FEATURES`.
        sentences: `"first"`, as the method validates, or `"all"`, as it tests.
        shuffle_expressions: give each sample a sentence that belongs to another picture; masks stay. What is left of
            the score is what the model knows without language.
        seed: of the shuffle.

    Raises:
        ValueError: `sentences` is neither; or there is but one picture to shuffle.
    """

    def __init__(
        self, rows: datasets.Dataset, sentences: str = "first", shuffle_expressions: bool = False, seed: int = 0
    ) -> None:
        if sentences not in ("first", "all"):
            raise ValueError(f'sentences={sentences!r} is not known: use "first" or "all".')
        self.rows = _undecoded(rows)
        texts = self.rows["sentences"]
        self.index = [(i, s) for i, row in enumerate(texts) for s in (row if sentences == "all" else row[:1])]
        if shuffle_expressions:
            self.index = _shuffled(self.index, self.rows["image_id"], seed)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        row_index, sentence = self.index[index]
        return _sample(self.rows[row_index], sentence)


def _sample(row: Mapping[str, Any], sentence: str) -> Sample:
    image, mask = decode_row(row)
    return Sample(image, sentence, mask, row["ref_id"])


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    # Decoding is `decode_row`'s, whose errors name the file.
    return rows.cast_column("image", datasets.Image(decode=False))


def _shuffled(index: Sequence[tuple[int, str]], image_ids: Sequence[int], seed: int) -> list[tuple[int, str]]:
    """The same rows, each with a sentence drawn from the other pictures."""
    images = np.array([image_ids[row] for row, _ in index])
    if len(set(images.tolist())) < 2:
        raise ValueError("shuffle_expressions needs sentences of at least two pictures.")
    rng = np.random.default_rng(seed)
    source = np.arange(len(index))
    while len(clashing := np.flatnonzero(images == images[source])):
        source[clashing] = rng.integers(len(index), size=len(clashing))
    return [(row, index[other][1]) for (row, _), other in zip(index, source.tolist(), strict=True)]


def batches(loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches of a data loader; what is wrong with a row is raised as the reader said it, in one line.

    PyTorch puts the traceback of the process that read it into the message.
    """
    try:
        yield from loader
    except (OSError, ValueError) as error:
        text = str(error).strip()
        if "Original Traceback" not in text:
            raise
        raise type(error)(text.splitlines()[-1].partition(": ")[2]) from None


@dataclass
class Collator:
    """Samples to a batch: the processor's tensors, and for scoring the masks at their own size.

    Args:
        processor: a `DetrisProcessor`, or anything that is called like one.
    """

    processor: Callable[..., Any]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`pixel_values`, `input_ids`, `labels`, `target_sizes`; `masks` (H, W) each, `ref_ids`, `sentences`."""
        masks = [sample.mask for sample in samples]
        inputs = self.processor(
            images=[sample.image for sample in samples],
            text=[sample.sentence for sample in samples],
            masks=masks,
            return_tensors="pt",
        )
        return {
            **inputs,
            "masks": masks,
            "ref_ids": [sample.ref_id for sample in samples],
            "sentences": [sample.sentence for sample in samples],
        }
