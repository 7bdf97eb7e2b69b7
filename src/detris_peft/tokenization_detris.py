"""Sentences as CLIP's own tokenizer takes them, and a small tokenizer of its kind."""

import html
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from transformers import CLIPTokenizer

# What CLIP's own tokenizer mends through ftfy and sentences do hold: curly quotes, full-width forms, ligatures.
# (Text decoded with the wrong codec is not mended: ftfy guesses there, and would be one more dependency.)
_PLAIN_CHARACTERS = str.maketrans(
    {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))}
    | dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def clean_sentence(sentence: str, name: str) -> str:
    """What CLIP's own tokenizer does before it splits; lower case is left to the tokenizer, not all want it."""
    if not isinstance(sentence, str):
        raise TypeError(f"{name} is of type {type(sentence).__name__}: pass a sentence (str)")
    plain = html.unescape(html.unescape(sentence)).translate(_PLAIN_CHARACTERS)
    cleaned = " ".join(plain.split())
    if not cleaned:
        raise ValueError(f"{name} is empty or only spaces: pass a sentence that names something in the image")
    return cleaned


def count_tokens(tokenizer: Any, sentences: Iterable[str]) -> list[int]:
    """How many tokens each sentence has, start and end included, before any is cut."""
    cleaned = [clean_sentence(sentence, f"sentence {i}") for i, sentence in enumerate(sentences)]
    return [len(ids) for ids in tokenizer(cleaned)["input_ids"]] if cleaned else []


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """A small tokenizer of CLIP's kind (byte-level BPE), for text encoders that come without a vocabulary.

    Id 0 is "!", the padding; start and end are the two highest ids, vocab_size - 2 and vocab_size - 1. The same
    sentences always give the same ids. Characters never seen become "<|unk|>" (id 1).

    Raises:
        ValueError: `vocab_size` cannot hold the sentences' characters.
    """
    pipeline = CLIPTokenizer().backend_tokenizer
    words = Counter()
    for i, sentence in enumerate(sentences):
        normalized = pipeline.normalizer.normalize_str(clean_sentence(sentence, f"sentences[{i}]"))
        words.update(word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(normalized))
    characters = sorted(set("".join(words)))
    # As in CLIP, a word's last symbol carries the mark of its end; every character may stand in either place.
    symbols = ["!", "<|unk|>", *characters, *(character + "</w>" for character in characters)]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    if vocab_size < len(vocab) + 2:
        raise ValueError(f"vocab_size {vocab_size} is too small: these sentences' characters need {len(vocab) + 2}")

    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while len(vocab) < vocab_size - 2:
        pairs = Counter()
        for word, split in splits.items():
            for pair in pairwise(split):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))  # ties by spelling, not by order of arrival
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
        for split in splits.values():
            for i in range(len(split)):  # the list gets shorter on the way: a slice beyond its end is only empty
                if split[i : i + 2] == [left, right]:
                    split[i : i + 2] = [left + right]
    reserved = range(len(vocab), vocab_size - 2)  # fewer words than ids: the end token stays the highest all the same
    vocab |= {f"<|reserved_{i}|>": i for i in reserved}
    vocab |= {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, unk_token="<|unk|>")
