"""Search for images whose sentences are similar to a given sentence, by shared words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ...text_cleaning import clean_text
from .mirroring import word_list

# From this similarity on, an image may show what the sentence describes. Sentences of three words that differ in one,
# "man, red, shirt" and "man, blue, shirt", have 0.5; those of four words that differ in one have 0.6.
AMBIGUOUS = 0.6
# Images are drawn from this many of the most similar ones, and all others of the same similarity: enough that an image
# rarely gets the same ones in two epochs, and few among the 17,000 of RefCOCO, most of which share no word.
CANDIDATES = 50
# Words that say nothing about the object.
STOP_WORDS = word_list("stop_words.txt")
_WORD = re.compile(r"\w+")


class SimilarImages:
    """Finds images with sentences that are similar to a sentence of another image.

    The similarity of two sentences is the Jaccard similarity of their sets of words without `STOP_WORDS`: the number
    of shared words divided by that of all words. It is 1 if one sentence has all words of the other, because a man in
    a red shirt is also a man. The similarity of an image is the largest one of its sentences.

    An inverted index finds the sentences that share a word: one search takes about a millisecond for RefCOCO.

    Args:
        sentences: the sentences of each of R rows, at least one per row; S in total.
        image_ids: (R,) image of each row.

    Attributes:
        row_of_image: (I,) a row of each image.
        position: (S,) position of each sentence if they are sorted by image. The other arrays have this order.
        first_of_row: (R,) index of each row's first sentence in `position`.
        starts: (I,) position of each image's first sentence.
        sizes: (S,) number of words of each sentence.
        words, word_starts: the words of the sentence at position p are `words[word_starts[p] : word_starts[p + 1]]`.
        found, found_starts: word w occurs at the positions `found[found_starts[w] : found_starts[w + 1]]`.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], image_ids: np.ndarray) -> None:
        _, self.row_of_image, image = np.unique(image_ids, return_index=True, return_inverse=True)
        counts = np.array([len(texts) for texts in sentences])
        self.first_of_row = np.cumsum(counts) - counts
        image_of_sentence = np.repeat(image, counts)
        by_image = np.argsort(image_of_sentence, kind="stable")
        self.position = np.empty_like(by_image)
        self.position[by_image] = np.arange(len(by_image))
        self.starts = np.searchsorted(image_of_sentence[by_image], np.arange(len(self.row_of_image)))

        vocabulary: dict[str, int] = {}
        texts = [text for texts in sentences for text in texts]
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in content_words(texts[i])] for i in by_image]
        self.sizes = np.array([len(words) for words in ids], dtype=np.int32)
        self.words = np.array([word for words in ids for word in words], dtype=np.int32)
        self.word_starts = np.concatenate([[0], np.cumsum(self.sizes)])
        by_word = np.argsort(self.words, kind="stable")
        self.found = np.repeat(np.arange(len(ids), dtype=np.int32), self.sizes)[by_word]
        self.found_starts = np.searchsorted(self.words[by_word], np.arange(len(vocabulary) + 1))

    def similarity(self, row: int, sentence: int) -> np.ndarray:
        """Return the similarity (I,) of each image to a sentence, given by its row and its index in that row.

        An image with a sentence without words has 1, as nothing is known about its object.
        """
        position = self.position[self.first_of_row[row] + sentence]
        words = self.words[self.word_starts[position] : self.word_starts[position + 1]]
        found = [self.found[self.found_starts[word] : self.found_starts[word + 1]] for word in words]
        shared = np.bincount(np.concatenate(found), minlength=len(self.sizes)) if found else np.zeros_like(self.sizes)
        similarity = shared / np.maximum(self.sizes + len(words) - shared, 1)
        similarity[shared == np.minimum(self.sizes, len(words))] = 1.0
        return np.maximum.reduceat(similarity, self.starts)

    def choose(self, row: int, sentence: int, count: int, rng: np.random.Generator) -> list[int] | None:
        """Return rows of different, random images among the most similar ones that are not ambiguous.

        Args:
            row, sentence: the sentence, see `similarity`. Its own image has 1, so it is never chosen.
            count: number of images; None is returned if there are fewer.
        """
        similarity = self.similarity(row, sentence)
        allowed = np.flatnonzero(similarity < AMBIGUOUS)
        if len(allowed) < count:
            return None
        rank = min(max(CANDIDATES, count), len(allowed))
        least = np.partition(similarity[allowed], -rank)[-rank]
        candidates = allowed[similarity[allowed] >= least]
        return self.row_of_image[rng.choice(candidates, count, replace=False)].tolist()


def content_words(sentence: str) -> list[str]:
    """Return the distinct words of a sentence that are not `STOP_WORDS`, in lower case and sorted."""
    return sorted(set(_WORD.findall(clean_text(sentence).lower())) - STOP_WORDS)
