"""Cleaning of sentences as in CLIP's own tokenizer; shared by the processor and the validation of rows."""

from __future__ import annotations

import html
import re
import unicodedata

# Replaces ftfy, which CLIP's own tokenizer uses, for the cases that occur: curly quotes, full-width forms, ligatures.
# Text decoded with the wrong codec is not fixed.
_PLAIN_CHARACTERS = str.maketrans(
    {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))}
    | dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
# Control characters, and the characters that Unicode lists as invisible (Default_Ignorable_Code_Point) except
# variation selectors: soft hyphen, zero-width space, direction marks, byte order mark, Hangul fillers, ...
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffc\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e0080-\U000e00ff\U000e01f0-\U000e0fff]"
)
# Tag characters spell the region of a flag emoji. Joiners shape Arabic and Indic words, and compose emoji.
_TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007f]+)|[\U000e0020-\U000e007f]+")
_WORD = "[\u0600-\u18af\ua8e0-\ua8ff\ufb50-\ufdff\ufe70-\ufefc]"
_EMOJI = "[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff\U000e007f]"
_REPEATED_JOINERS = re.compile("([\u200c\u200d])[\u200c\u200d]+")
_USELESS_JOINER = re.compile(f"[\u200c\u200d](?!(?<={_WORD}.){_WORD}|(?<={_EMOJI}.){_EMOJI})")
_BLANK = "\u2800"  # the Braille pattern without dots, which is not whitespace for `str.split`
_UNSEEN = ("Mn", "Me", "Zs", "Zl", "Zp", "Cc", "Cf")  # combining marks, spaces, control and format characters
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_sentence(sentence: str, name: str) -> str:
    """Clean a sentence as CLIP's own tokenizer does before splitting it, and remove invisible characters.

    The tokenizer itself lowercases.

    Raises:
        ValueError: the sentence is blank, or holds half of a surrogate pair; the message starts with `name`.
        TypeError: the sentence is not a string.
    """
    if not isinstance(sentence, str):
        raise TypeError(f"{name}: expected a sentence (str), got {type(sentence).__name__}; convert it first")
    if has_surrogate(sentence):
        raise ValueError(f"{name}: expected text, got half of a surrogate pair in {sentence!r:.60}; fix the sentence")
    cleaned = clean_text(sentence)
    if not cleaned:
        raise ValueError(
            f"{name}: expected a sentence, got only whitespace, invisible characters or nothing; pass a non-empty "
            "expression"
        )
    return cleaned


def clean_text(text: str) -> str:
    """Return the text as the tokenizer reads it; empty if nothing of it is visible."""
    plain = html.unescape(html.unescape(text))
    plain = _CONTROL.sub("", plain) if plain.isascii() else _visible(plain.translate(_PLAIN_CHARACTERS))
    return " ".join(plain.split())


def has_surrogate(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _visible(text: str) -> str:
    text = _TAGS.sub(r"\1", _INVISIBLE.sub("", text)).replace(_BLANK, " ")
    text = _USELESS_JOINER.sub("", _REPEATED_JOINERS.sub(r"\1", text))
    # Combining marks and variation selectors without a character that they belong to are invisible as well.
    return text if any(unicodedata.category(character) not in _UNSEEN for character in text) else ""
