"""Torch datasets of (image, sentence, mask) samples for training, evaluation and streaming."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .augmentation import AbsentSentences, Mosaic
from .errors import KIND_NOTE, BadRowError
from .row_decoder import Augmentation, RowDecoder, Sample, sentences_of_rows, undecoded
from .workers import shared_integer

# Added to the seed of a sample, so that no feature changes the random numbers of another one.
_NO_TARGET_DRAWS, _MOSAIC_DRAWS = 1, 2


class TrainingSamples(Dataset):
    """Training dataset: each epoch visits every reference once, in random order, with one randomly chosen sentence.

    Order and sentences depend only on seed and epoch, not on the number of workers or ranks. An epoch can therefore be
    repeated, or resumed at any sample.

    Args:
        rows: a dataset with the columns of `FEATURES`.
        seed: seed of the order and of the sentence choice.
        skip_bad_rows: replace each invalid row with the next valid one in the epoch's order; otherwise the first
            invalid row raises.
        augment: augments each sample; the result is discarded if its mask is no longer visible.
        image_size: decode large JPEGs no larger than needed; see `decode_row`.
        is_visible: returns whether a mask (H, W) is still visible at the model's size, as `DetrisProcessor.is_visible`
            does; a row whose mask is not visible is invalid.
        as_arrays: decode JPEGs to arrays with simplejpeg, if it is installed; see `decode_row`.
        no_target_ratio: probability that a sample gets a sentence that refers to nothing in its image, and an empty
            mask; see `AbsentSentences`. If no sentence qualifies for its image, it keeps its own, as do rows without
            a target.
        mosaic: puts images into mosaics, after the augmentation.

    Raises:
        ValueError: `no_target_ratio` is above 0, and no sentence qualifies for any image.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        seed: int = 0,
        *,
        skip_bad_rows: bool = False,
        augment: Augmentation | None = None,
        image_size: int | None = None,
        is_visible: Callable[[np.ndarray], bool] | None = None,
        as_arrays: bool = False,
        no_target_ratio: float = 0.0,
        mosaic: Mosaic | None = None,
    ) -> None:
        self.rows = undecoded(rows)
        self.seed = seed
        self.skip_bad_rows = skip_bad_rows
        self.no_target_ratio = no_target_ratio
        self.absent = AbsentSentences(self.rows) if no_target_ratio else None
        self.mosaic = mosaic
        self.decoder = RowDecoder(image_size, is_visible, augment, as_arrays)
        self._shared_epoch = shared_integer()
        self.set_epoch(0)

    @property
    def epoch(self) -> int:
        return int(self._shared_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Reseed order and sentences for this epoch, also in running workers of a data loader.

        Data loaders of accelerate call it before iterating.
        """
        self._shared_epoch.fill_(epoch)
        self._reseed()

    def _reseed(self) -> None:
        self._seeded_epoch = self.epoch
        rng = np.random.default_rng([self.seed, self._seeded_epoch])
        self.order = rng.permutation(len(self.rows))
        self.sentence_draws = rng.random(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if self._seeded_epoch != self.epoch:  # in a worker that has run since an earlier epoch
            self._reseed()
        own_error: BadRowError | None = None
        for position in (*range(index, len(self)), *range(index)):
            try:
                sample = self._load(position)
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                own_error = own_error or error
            else:
                # Report only the error at this index, so that each invalid row is reported once per epoch.
                return replace(sample, skipped=(own_error,) if own_error else ())
        raise _no_valid_row(len(self), own_error)

    def _load(self, position: int) -> Sample:
        row_index = int(self.order[position])
        row = self.rows[row_index]
        sentences = row["sentences"] or [""]  # a row without sentences is refused when it is decoded
        index = int(self.sentence_draws[position] * len(sentences))
        seed = [self.seed, self._seeded_epoch, row_index]
        absent = None
        if self.absent is not None and not row["no_target"]:
            absent = self._absent_sentence(self.absent, row_index, seed)
        sample = self.decoder.decode(row, absent or sentences[index], seed, no_target=absent is not None)
        if self.mosaic is None:
            return sample
        return self.mosaic(sample, row_index, index, np.random.default_rng([*seed, _MOSAIC_DRAWS]))

    def _absent_sentence(self, absent: AbsentSentences, row: int, seed: list[int]) -> str | None:
        """Return a sentence that refers to nothing in the row's image, with probability `no_target_ratio`."""
        rng = np.random.default_rng([*seed, _NO_TARGET_DRAWS])
        source = absent.choose(row, rng) if rng.random() < self.no_target_ratio else None
        return self.rows[source[0]]["sentences"][source[1]] if source else None


class EvaluationSamples(Dataset):
    """References in the order of the rows, with their first sentence or with each of their sentences.

    Args:
        rows: a dataset with the columns of `FEATURES`.
        sentences: `"first"`, as in the paper's validation, or `"all"`, as in its tests.
        shuffle_expressions: give each sample a sentence that belongs to another image; masks stay the same. The
            remaining score measures how much the model relies on vision alone.
        seed: seed of the shuffle and of the no-target pairs.
        skip_bad_rows: return a sample with `error` set for a row that cannot be used; otherwise such a row raises.
        image_size: decode large JPEGs no larger than needed; see `decode_row`.
        as_arrays: decode JPEGs to arrays with simplejpeg, if it is installed; see `decode_row`.
        no_target_pairs: append one sample per sample with a target: the same image with a sentence that refers to
            nothing in it, and an empty mask; see `AbsentSentences`. None is added if no sentence qualifies.

    Attributes:
        first_pair: index of the first of these added samples, which are the last ones; without any, the length.
        row_index: row of each sample.
        sentence_row, sentence_index: row of each sample's sentence, and its index in that row.

    Raises:
        ValueError: `sentences` is neither of the two values, `shuffle_expressions` is set and the rows have fewer than
            two images, or `no_target_pairs` is set and no sentence qualifies for any image.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        sentences: str = "first",
        shuffle_expressions: bool = False,
        seed: int = 0,
        *,
        skip_bad_rows: bool = False,
        image_size: int | None = None,
        as_arrays: bool = False,
        no_target_pairs: bool = False,
    ) -> None:
        if sentences not in ("first", "all"):
            raise ValueError(f'sentences: expected "first" or "all", got {sentences!r}')
        self.rows = undecoded(rows)
        self.skip_bad_rows = skip_bad_rows
        self.decoder = RowDecoder(image_size, as_arrays=as_arrays)
        counts = np.array([len(texts) for texts in sentences_of_rows(self.rows)], dtype=np.int64)
        counts = counts if sentences == "all" else np.minimum(counts, 1)
        # Arrays, not lists: reading a list's items changes their reference counts, so each worker would copy the list.
        self.row_index = np.repeat(np.arange(len(counts)), counts)
        self.sentence_index = np.arange(len(self.row_index)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.sentence_row = self.row_index
        if shuffle_expressions:
            source = _shuffled(np.array(self.rows["image_id"])[self.row_index], seed)
            self.sentence_row, self.sentence_index = self.row_index[source], self.sentence_index[source]
        self.first_pair = len(self.row_index)
        if no_target_pairs:
            self._add_no_target_pairs(seed)

    def _add_no_target_pairs(self, seed: int) -> None:
        absent, rng = AbsentSentences(self.rows), np.random.default_rng(seed)
        no_target = np.array(self.rows["no_target"][:], dtype=bool)
        rows = [int(row) for row in self.row_index[~no_target[self.row_index]]]
        pairs = [(row, *source) for row in rows if (source := absent.choose(row, rng)) is not None]
        columns = (self.row_index, self.sentence_row, self.sentence_index)
        self.row_index, self.sentence_row, self.sentence_index = (
            np.concatenate([values, added])
            for values, added in zip(columns, np.array(pairs, dtype=np.int64).reshape(-1, 3).T, strict=True)
        )

    def __len__(self) -> int:
        return len(self.row_index)

    def __getitem__(self, index: int) -> Sample:
        row_index, sentence_row = int(self.row_index[index]), int(self.sentence_row[index])
        row = self.rows[row_index]
        sentences = row["sentences"] if sentence_row == row_index else self.rows[sentence_row]["sentences"]
        sentence = (sentences or [""])[int(self.sentence_index[index])]
        try:
            return self.decoder.decode(row, sentence, no_target=index >= self.first_pair)
        except BadRowError as error:
            if not self.skip_bad_rows:
                raise
            placeholder = np.zeros((8, 8), np.uint8)
            return Sample(Image.new("RGB", (8, 8)), sentence, placeholder, row["ref_id"], error=error)


class StreamedSamples(IterableDataset):
    """Streaming dataset: each row once per epoch, shuffled within a buffer, with one randomly chosen sentence.

    The sentences depend only on seed, epoch and row. The order also depends on the number of workers, among which the
    files of the stream are divided.

    Args:
        rows: a stream with the columns of `FEATURES`.
        seed: seed of the shuffle and of the sentence choice.
        buffer_size: number of rows in the shuffle buffer.
        skip_bad_rows: skip invalid rows without replacing them; otherwise the first one raises.
        augment, image_size, is_visible, as_arrays: see `TrainingSamples`.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        seed: int = 0,
        *,
        buffer_size: int = 1000,
        skip_bad_rows: bool = False,
        augment: Augmentation | None = None,
        image_size: int | None = None,
        is_visible: Callable[[np.ndarray], bool] | None = None,
        as_arrays: bool = False,
    ) -> None:
        self.rows = undecoded(rows).shuffle(seed=seed, buffer_size=buffer_size)
        self.seed = seed
        self.skip_bad_rows = skip_bad_rows
        self.decoder = RowDecoder(image_size, is_visible, augment, as_arrays)
        self._shared_epoch = shared_integer()
        self.set_epoch(0)

    @property
    def epoch(self) -> int:
        return int(self._shared_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Reseed order and sentences for this epoch, also in running workers of a data loader."""
        self._shared_epoch.fill_(epoch)
        self.rows.set_epoch(epoch)  # `datasets` shares its own epoch with the workers

    def __iter__(self) -> Iterator[Sample]:
        epoch = self.epoch
        skipped: list[BadRowError] = []
        held: Sample | None = None  # held back so that trailing invalid rows can be reported with it
        for row in self.rows:  # `datasets` splits the stream among the workers of a loader
            identity = [self.seed, epoch, crc32(row["dataset"].encode()), row["ref_id"] % 2**63]
            sentences = row["sentences"] or [""]  # a row without sentences is refused when it is decoded
            sentence = sentences[int(np.random.default_rng(identity).integers(len(sentences)))]
            try:
                sample = self.decoder.decode(row, sentence, [*identity, 1])
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                skipped.append(error)
                continue
            if held is not None:
                yield replace(held, skipped=tuple(skipped))
                skipped = []
            held = sample
        if held is not None:
            yield replace(held, skipped=tuple(skipped))
        elif skipped:
            raise _no_valid_row(len(skipped), skipped[0])


def _no_valid_row(count: int, first_error: BadRowError | None) -> ValueError:
    return ValueError(f"expected at least one valid row, got {count} invalid rows; fix the first: {first_error}")


def _shuffled(image_ids: np.ndarray, seed: int) -> np.ndarray:
    """Return, for each sample, the index of a random sample that belongs to another image."""
    if (count := len(set(image_ids.tolist()))) < 2:
        raise ValueError(f"shuffle_expressions: expected sentences of at least two images, got {count}; add images")
    rng = np.random.default_rng(seed)
    source = np.arange(len(image_ids))
    while len(same_image := np.flatnonzero(image_ids == image_ids[source])):
        source[same_image] = rng.integers(len(image_ids), size=len(same_image))
    return source


def iterate_batches(loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the batches of a data loader; re-raise a worker's error with its original one-line message.

    PyTorch replaces the message of a worker's error with its traceback.
    """
    try:
        yield from loader
    except (OSError, ValueError) as error:
        if "Original Traceback" not in str(error):
            raise
        raise _original_error(error) from None


def _original_error(error: OSError | ValueError) -> OSError | ValueError:
    """Re-create the exception raised in the worker."""
    text = str(error).strip()
    original = re.split(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
    message, _, kind = original.partition(f"\n{KIND_NOTE}")
    message = " ".join(message.split())
    return type(error)(message, kind) if isinstance(error, BadRowError) and kind else type(error)(message)
