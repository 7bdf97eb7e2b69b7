"""From rows to batches: which reference is visited when, with which of its sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .errors import KIND_NOTE, BadRowError
from .schema import decode_row


@dataclass
class Sample:
    """One image, one sentence, and the mask it refers to: (H, W) of uint8 0/1.

    The mask has the file's size; of a large JPEG the image may be a half, a quarter or an eighth of it.
    """

    image: Image.Image
    sentence: str
    mask: np.ndarray
    ref_id: int
    no_target: bool = False
    # Why the row cannot be used: image and mask are placeholders then, and nobody scores them.
    bad: BadRowError | None = None
    # The bad rows in whose place this one stands.
    passed_over: tuple[BadRowError, ...] = ()


# Changes a sample, with random numbers from a generator that depends on seed, epoch and row alone.
Augmentation = Callable[[Sample, np.random.Generator], Sample]


class TrainingSamples(Dataset):
    """One epoch: every reference once, in random order, with one of its sentences drawn at random.

    Order and sentences depend on seed and epoch alone, not on workers or processes, so an epoch can be repeated, and
    entered anywhere.

    Args:
        rows: a dataset with the columns of `FEATURES`.
        seed: of the draws.
        skip_bad_rows: a row that cannot be used is passed over, and the next good one of the epoch's order stands in
            its place; otherwise the first one raises.
        augment: changes each sample; what would leave nothing of its mask is not done.
        image_size: decode large JPEGs no larger than needed; see `decode_row`.
        is_visible: whether something of a mask (H, W) is left at the model's size; what is not is a bad row.
            `DetrisProcessor.is_visible`.
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
    ) -> None:
        self.rows = _undecoded(rows)
        self.seed = seed
        self.skip_bad_rows = skip_bad_rows
        self.reader = _Reader(image_size, is_visible, augment)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before iterating (a data loader of accelerate does)."""
        self.epoch = epoch
        rng = np.random.default_rng([self.seed, epoch])
        self.order = rng.permutation(len(self.rows))
        self.draws = rng.random(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        own: BadRowError | None = None
        for place in (*range(index, len(self)), *range(index)):
            try:
                sample = self._read(place)
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                own = own or error
            else:
                # Of several bad rows in a row each is told of at its own place, and so once an epoch.
                return replace(sample, passed_over=(own,) if own else ())
        raise ValueError(f"Every one of the {len(self)} rows is bad, the first for: {own}")

    def _read(self, place: int) -> Sample:
        number = int(self.order[place])
        row = self.rows[number]
        sentences = row["sentences"]
        sentence = sentences[int(self.draws[place] * len(sentences))]
        return self.reader.read(row, sentence, [self.seed, self.epoch, number])


class EvaluationSamples(Dataset):
    """References in their own order, with their first sentence or with each of them.

    Args:
        rows: a dataset with the columns of `FEATURES`.
        sentences: `"first"`, as the method validates, or `"all"`, as it tests.
        shuffle_expressions: give each sample a sentence that belongs to another image; masks stay. What is left of
            the score is what the model knows without language.
        seed: of the shuffle.
        skip_bad_rows: a row that cannot be used gives a sample that says so in `bad`; otherwise it raises.
        image_size: decode large JPEGs no larger than needed; see `decode_row`.

    Raises:
        ValueError: `sentences` is neither; or there is but one image to shuffle.
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
    ) -> None:
        if sentences not in ("first", "all"):
            raise ValueError(f'sentences={sentences!r} is not known: use "first" or "all".')
        self.rows = _undecoded(rows)
        self.skip_bad_rows = skip_bad_rows
        self.reader = _Reader(image_size)
        counts = np.array([len(row) for row in self.rows["sentences"]] if len(rows) else [], dtype=np.int64)
        counts = counts if sentences == "all" else np.minimum(counts, 1)
        # Arrays, not lists: each reading process would copy a list's every item as it looks at it.
        self.row = np.repeat(np.arange(len(counts)), counts)
        self.place = np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.source = np.arange(len(self.row))  # the sample whose sentence is taken
        if shuffle_expressions:
            self.source = _shuffled(np.array(self.rows["image_id"])[self.row], seed)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> Sample:
        row, source = self.rows[int(self.row[index])], int(self.source[index])
        texts = row["sentences"] if source == index else self.rows[int(self.row[source])]["sentences"]
        sentence = texts[int(self.place[source])]
        try:
            return self.reader.read(row, sentence)
        except BadRowError as error:
            if not self.skip_bad_rows:
                raise
            nothing = np.zeros((8, 8), np.uint8)
            return Sample(Image.new("RGB", (8, 8)), sentence, nothing, row["ref_id"], bad=error)


class StreamedSamples(IterableDataset):
    """Rows that come as a stream: once an epoch, in an order shuffled within a buffer, one sentence drawn for each.

    The sentences depend on seed, epoch and row alone; the order also on the number of workers, which share the
    stream's files.

    Args:
        rows: a stream with the columns of `FEATURES`.
        seed: of the draws.
        buffer_size: rows among which the next one is drawn.
        skip_bad_rows, augment, image_size, is_visible: as in `TrainingSamples`, but a bad row's place is taken by
            nothing.
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
    ) -> None:
        self.rows = _undecoded(rows).shuffle(seed=seed, buffer_size=buffer_size)
        self.seed = seed
        self.skip_bad_rows = skip_bad_rows
        self.reader = _Reader(image_size, is_visible, augment)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Sample]:
        passed_over: list[BadRowError] = []
        waiting: Sample | None = None  # for the bad rows behind it, which the stream's last ones have to be told with
        for row in self.rows:  # which `datasets` shares out among a loader's workers
            identity = [self.seed, self.epoch, crc32(row["dataset"].encode()), row["ref_id"] % 2**63]
            sentence = row["sentences"][int(np.random.default_rng(identity).integers(len(row["sentences"])))]
            try:
                sample = self.reader.read(row, sentence, [*identity, 1])
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                passed_over.append(error)
                continue
            if waiting is not None:
                yield replace(waiting, passed_over=tuple(passed_over))
                passed_over = []
            waiting = sample
        if waiting is not None:
            yield replace(waiting, passed_over=tuple(passed_over))
        elif passed_over:
            raise ValueError(f"Every one of the {len(passed_over)} rows is bad, the first for: {passed_over[0]}")


@dataclass
class _Reader:
    """A row to a sample: decoded, checked, augmented."""

    image_size: int | None = None
    is_visible: Callable[[np.ndarray], bool] | None = None
    augment: Augmentation | None = None

    def read(self, row: Mapping[str, Any], sentence: str, seed: Sequence[int] = ()) -> Sample:
        image, mask = decode_row(row, self.image_size)
        sample = Sample(image, sentence, mask, row["ref_id"], row["no_target"])
        if not self._has_label(sample):
            raise BadRowError(
                f"{row['file_name']}: reference {row['ref_id']}: of the mask's {int(mask.sum())} pixels none is left "
                "at the model's image_size: crop the image, or train at a larger size",
                "mask_empty",
            )
        if self.augment is None:
            return sample
        changed = self.augment(sample, np.random.default_rng(seed))
        return changed if self._has_label(changed) else sample

    def _has_label(self, sample: Sample) -> bool:
        return sample.no_target or self.is_visible is None or self.is_visible(sample.mask)


def _undecoded(rows: Any) -> Any:
    # Decoding is `decode_row`'s, whose errors name the file.
    return rows.cast_column("image", datasets.Image(decode=False))


def _shuffled(images: np.ndarray, seed: int) -> np.ndarray:
    """For each sample, by its image's id, another one that belongs to another image."""
    if len(set(images.tolist())) < 2:
        raise ValueError("shuffle_expressions needs sentences of at least two images.")
    rng = np.random.default_rng(seed)
    source = np.arange(len(images))
    while len(clashing := np.flatnonzero(images == images[source])):
        source[clashing] = rng.integers(len(images), size=len(clashing))
    return source


def batches(loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches of a data loader; what is wrong with a row is raised as the reader said it, in one line.

    PyTorch puts the traceback of the process that read it into the message.
    """
    try:
        yield from loader
    except (OSError, ValueError) as error:
        if "Original Traceback" not in str(error):
            raise
        raise _as_raised(error) from None


def _as_raised(error: OSError | ValueError) -> OSError | ValueError:
    """What came out of a worker's process, as it was there."""
    text = str(error).strip()
    said = re.split(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
    message, _, kind = said.partition(f"\n{KIND_NOTE}")
    message = " ".join(message.split())
    return type(error)(message, kind) if isinstance(error, BadRowError) and kind else type(error)(message)
