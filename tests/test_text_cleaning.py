"""Cleaning of sentences: what the tokenizer reads is what the validation of rows sees."""

import pytest

from detris_peft import DetrisProcessor
from detris_peft.text_cleaning import clean_sentence, clean_text, has_surrogate
from detris_peft.tokenization_detris import train_tokenizer

BLANK = [
    "",
    " \t\u00a0\u3000",
    "&nbsp;",
    "&#8203;",
    "&amp;zwj;",
    "\u200b\ufeff",
    "\u200e\u202b\u2069",
    "\u00ad",
    "\u3164",
    "\u2800",
    "\u0301",
    "\ufe0f",
    "\x00\x07",
    "\U000e0067",
]


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_text_without_visible_characters_is_empty(text):
    assert clean_text(text) == ""
    with pytest.raises(ValueError, match=r"text\[0\]: expected a sentence, got only whitespace, invisible characters"):
        clean_sentence(text, "text[0]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the  red\tcircle ", "the red circle"),
        ("the &quot;red&quot; circle", 'the "red" circle'),
        ("l\u2019homme \u201cgros\u201d", 'l\'homme "gros"'),
        ("\ufeffthe\u200b red\u00ad circle", "the red circle"),
        ("\u200f\u0627\u0644\u0631\u062c\u0644\u200e", "\u0627\u0644\u0631\u062c\u0644"),
        ("ab\u200dc\u200c", "abc"),
        ("left \x00one", "left one"),
        ("\U0001f600", "\U0001f600"),
        ("\U0001faeb", "\U0001faeb"),  # an emoji that older versions of Python do not know
    ],
    ids=ascii,
)
def test_invisible_characters_are_removed(text, expected):
    assert clean_text(text) == expected
    assert clean_text(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, zero-width non-joiner within a word
        "\u0915\u094d\u200d\u0937",  # Devanagari, zero-width joiner
        "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468",  # an emoji of several
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # a flag spelled by tags
    ],
    ids=ascii,
)
def test_joiners_within_words_and_emoji_are_kept(text):
    assert clean_text(f"\u200d{text}\u200c") == text


def test_half_a_surrogate_pair_is_refused():
    assert has_surrogate("a\ud83d")
    assert not has_surrogate("a\U0001f600")
    with pytest.raises(ValueError, match="text: expected text, got half of a surrogate pair in 'a"):
        clean_sentence("a\ud83d", "text")
    with pytest.raises(TypeError, match=r"text: expected a sentence \(str\), got int"):
        clean_sentence(3, "text")


def test_direction_marks_use_no_tokens():
    sentence = "\u0627\u0644\u0631\u062c\u0644 \u0627\u0644\u0623\u062d\u0645\u0631"
    processor = DetrisProcessor(train_tokenizer([sentence], 200))
    plain, marked = processor(text=[sentence, f"\ufeff\u200f{sentence}\u200e"])["input_ids"]
    assert plain.tolist() == marked.tolist()
