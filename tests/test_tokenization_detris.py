"""Tests of sentence cleaning, compared with CLIP's own tokenizer, and of trained tokenizers."""

import gzip
import importlib.metadata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, CLIPTokenizer

from detris_peft import DetrisProcessor
from detris_peft.tokenization_detris import train_tokenizer

FIXTURE = Path(__file__).parent / "fixtures" / "tiny_processing.safetensors"
SENTENCES = [
    "the small red circle left of the blue square",
    "a big green triangle",
    "the man's red hat, 2nd from left!",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=120)


@pytest.fixture(scope="module")
def clip_tokenizer():
    """CLIP's tokenizer. Its vocabulary is part of open_clip_torch."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch, which contains CLIP's vocabulary, is not installed")
    path = next(file for file in files if file.name == name).locate()
    lines = gzip.decompress(Path(str(path)).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    symbols = [*units, *(unit + "</w>" for unit in units), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges)


def test_input_ids_match_the_reference(clip_tokenizer):
    processor = DetrisProcessor(clip_tokenizer, image_size=112)
    with safe_open(FIXTURE, "pt") as file:
        sentences = [file.metadata()[str(i)] for i in range(7)]
        assert torch.equal(processor(text=sentences).input_ids, file.get_tensor("input_ids"))


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("the “red” one", 'the "red" one'),
        ("man&rsquo;s hat", "man's hat"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("\ufb01re \uff54\uff52\uff55\uff43\uff4b", "fire truck"),
        ("cafe\u0301\u3000sign\t\n", "café sign"),
    ],
)
def test_sentences_are_cleaned_as_by_clip(clip_tokenizer, odd, plain):
    processor = DetrisProcessor(clip_tokenizer)
    assert torch.equal(processor(text=odd).input_ids, processor(text=plain).input_ids)
    assert processor.tokenizer.unk_token_id not in processor(text=plain).input_ids[0, 1 : len(plain.split()) + 1]


def test_trained_tokenizer_has_the_layout_of_clip(tokenizer):
    assert len(tokenizer) == 120
    assert tokenizer.convert_ids_to_tokens([0, 118, 119]) == ["!", "<|startoftext|>", "<|endoftext|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (118, 119)
    ids = tokenizer(SENTENCES)["input_ids"]
    assert all(max(row) == row[-1] == 119 and 0 not in row and tokenizer.unk_token_id not in row for row in ids)
    assert len(tokenizer("the red")["input_ids"]) == 4  # frequent words are one token each
    assert tokenizer.unk_token_id in tokenizer("zoë")["input_ids"]


def test_trained_tokenizer_is_deterministic_and_round_trips(tokenizer, tmp_path):
    again = train_tokenizer(reversed(SENTENCES), vocab_size=120)  # the order of sentences does not matter
    again.save_pretrained(tmp_path)
    for other in (again, CLIPTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert other.get_vocab() == tokenizer.get_vocab()
        for sentence in [*SENTENCES, "zoë & the triangles!!"]:
            assert other(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]


def test_end_token_has_the_highest_id_with_few_words():
    tokenizer = train_tokenizer(["red"], vocab_size=50)
    ids = tokenizer("red")["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (48, 49, 3)
    with pytest.raises(ValueError, match=r"vocab_size: expected at least 10 .*, got 9"):
        train_tokenizer(["red"], vocab_size=9)
    assert train_tokenizer(["red"], vocab_size=10).eos_token_id == 9
    with pytest.raises(ValueError, match=r"sentences\[1\]: expected a sentence"):
        train_tokenizer(["red", " "], vocab_size=50)
