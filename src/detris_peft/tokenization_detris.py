"""Counting of tokens, and training of small tokenizers of CLIP's type."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from .errors import one_line
from .text_cleaning import clean_sentence

_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def count_tokens(tokenizer: Any, sentences: Iterable[str]) -> list[int]:
    """Return the number of tokens of each sentence before truncation, start and end token included."""
    cleaned = [clean_sentence(sentence, f"sentence {i}") for i, sentence in enumerate(sentences)]
    return [len(ids) for ids in tokenizer(cleaned)["input_ids"]] if cleaned else []


def has_vocabulary(folder: Path) -> bool:
    """Return whether a folder contains the vocabulary of a tokenizer. transformers would use an empty one."""
    return any(file.name in _VOCABULARY_FILES or file.suffix == ".model" for file in folder.iterdir())


def load_tokenizer(name: str, revision: str = "main") -> PreTrainedTokenizerBase:
    """Load a tokenizer without running code that comes with it.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: the tokenizer cannot be read; the message gives the reason.
    """
    fix = "pass the tokenizer of the text encoder as --tokenizer"
    folder = Path(name)
    if folder.is_dir() and not has_vocabulary(folder):
        raise ValueError(
            f"tokenizer {name}: expected a folder with a tokenizer, got one without tokenizer.json; {fix}."
        )
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain exceptions for damaged files
        reason = one_line(error, first_line=True).rstrip(".")
        raise ValueError(f"tokenizer {name}: cannot be loaded ({reason}); {fix}.") from error


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """Train a small CLIP tokenizer (byte-level BPE), for text encoders without a published vocabulary.

    Id 0 is "!", the padding; the start and end tokens have the two highest ids, vocab_size - 2 and vocab_size - 1.
    Characters that do not occur in the sentences become "<|unk|>" (id 1). The result is deterministic and does not
    depend on the order of the sentences.

    Raises:
        ValueError: `vocab_size` is too small for the characters of the sentences, or a sentence is empty.
    """
    pipeline = CLIPTokenizer().backend_tokenizer
    words = Counter()
    for i, sentence in enumerate(sentences):
        normalized = pipeline.normalizer.normalize_str(clean_sentence(sentence, f"sentences[{i}]"))
        words.update(word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(normalized))
    characters = sorted(set("".join(words)))
    # As in CLIP, the last symbol of a word is marked; any character may be the last one or not.
    symbols = ["!", "<|unk|>", *characters, *(character + "</w>" for character in characters)]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    if vocab_size < len(vocab) + 2:
        raise ValueError(
            f"vocab_size: expected at least {len(vocab) + 2} for the characters of these sentences, got {vocab_size}; "
            "increase it"
        )

    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while len(vocab) < vocab_size - 2:
        pairs = Counter()
        for word, split in splits.items():
            for pair in pairwise(split):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))  # deterministic tie-break
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
        for split in splits.values():
            for i in range(len(split)):  # the list gets shorter: slicing past its end is empty
                if split[i : i + 2] == [left, right]:
                    split[i : i + 2] = [left + right]
    # With fewer words than ids, reserved tokens keep the end token at the highest id.
    vocab |= {f"<|reserved_{i}|>": i for i in range(len(vocab), vocab_size - 2)}
    vocab |= {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, unk_token="<|unk|>")
