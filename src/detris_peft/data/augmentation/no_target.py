"""Choice of sentences that refer to nothing in an image, among the sentences of other images."""

from __future__ import annotations

import datasets
import numpy as np

from ...text_cleaning import clean_text
from ..row_decoder import sentences_of_rows

# Sentences drawn at first: most images lack most categories, so that one of these nearly always qualifies. Only
# otherwise all sentences are compared, which takes about 1 ms for RefCOCO.
_DRAWS = 64


class AbsentSentences:
    """Chooses sentences about an object that is absent from an image, as far as the rows tell.

    A sentence qualifies for an image if

    - no row of the image has the category of the sentence's row, and
    - no sentence of the image has the same text, after cleaning and without regard to case and whitespace.

    Each sentence that qualifies is equally likely. Only what the rows list is known: an unlabeled object of that
    category may still be in the image, and of a row with several targets only the first one's category. An image with
    a target of unknown category (-1) gets no sentence.

    Attributes:
        row, sentence: (S,) row of each sentence of the dataset, and its index in that row.
        text: (S,) ids of the texts; equal texts have the same id.
        category: (S,) category ids of the rows.
        candidates: indices of the sentences with a category.
        image: (R,) number of each row's image; -1 if it has a target of unknown category.
        of_image, starts: the sentences of image i are `of_image[starts[i] : starts[i + 1]]`.

    Raises:
        ValueError: no image has a sentence that qualifies, for example because the rows have no category ids.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        # Arrays only: DataLoader workers share them, but copy each Python container that they read.
        sentences = sentences_of_rows(rows)
        counts = np.array([len(texts) for texts in sentences], dtype=np.int64)
        self.row = np.repeat(np.arange(len(counts)), counts)
        self.sentence = np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = {"": 0}  # a blank text
        cleaned = (clean_text(text).lower() for texts in sentences for text in texts)
        self.text = np.array([ids.setdefault(text, len(ids)) for text in cleaned], dtype=np.int64)
        category_of_row = np.array(rows["category_id"][:], dtype=np.int64)
        self.category = category_of_row[self.row]
        self.candidates = np.flatnonzero((self.category != -1) & (self.text != 0))

        images, first_row, self.image = np.unique(
            np.array(rows["image_id"][:], dtype=np.int64), return_index=True, return_inverse=True
        )
        image_of_sentence = self.image[self.row]
        self.of_image = np.argsort(image_of_sentence, kind="stable")
        self.starts = np.searchsorted(image_of_sentence[self.of_image], np.arange(len(images) + 1))
        is_unknown = (category_of_row == -1) & ~np.array(rows["no_target"][:], dtype=bool)
        self.image = np.where(np.isin(self.image, self.image[is_unknown]), -1, self.image)

        rng, categories = np.random.default_rng(0), np.unique(self.category[self.candidates])
        if len(categories) < 2 or not any(self.choose(int(row), rng) for row in first_row):
            split = rows["split"][0] if len(rows) else "empty"
            raise ValueError(
                f"{split} split: category_id: expected several categories, of which an image lacks at least one, got "
                f"{len(categories)} in {len(counts)} references; add category ids, or omit no_target_ratio and "
                "no_target_pairs."
            )

    def choose(self, row: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return (row, index in that row) of a random sentence that qualifies for the image of a row, or None."""
        image = int(self.image[row])
        if image < 0:
            return None
        own = self.of_image[self.starts[image] : self.starts[image + 1]]
        for drawn in (rng.choice(self.candidates, _DRAWS), self.candidates):
            is_present = np.isin(self.category[drawn], self.category[own]) | np.isin(self.text[drawn], self.text[own])
            if not is_present.all():
                chosen = rng.choice(drawn[~is_present])
                return int(self.row[chosen]), int(self.sentence[chosen])
        return None
