"""Which expressions stay true of a mirrored image if left and right are exchanged."""

from __future__ import annotations

import re
from pathlib import Path


def word_list(name: str) -> frozenset[str]:
    """Return the words of a file in this folder."""
    return frozenset((Path(__file__).parent / name).read_text(encoding="utf-8").split())


_SIDES = re.compile(
    r"\b(left|right)(?=most|-?hand|-?side|er|ie|y|s|wards?|\b)"  # "leftmost", "lefthand"; not "bright", "leftover"
    r"|\b(lft|lt|rgt|rt)\b"  # common abbreviations
    r"|(?<![\w'’])([lr])(?![\w'’-]| shape)",  # noqa: RUF001  "guy on r"; not "l-shaped", "l'homme"
    re.IGNORECASE,
)
_OPPOSITE = {
    "left": "right",
    "right": "left",
    "lft": "rgt",
    "rgt": "lft",
    "lt": "rt",
    "rt": "lt",
    "l": "r",
    "r": "l",
}
SIDE_WORDS = frozenset(
    side + ending
    for side in ("left", "right")
    for ending in ("", "most", "hand", "handed", "side", "er", "ie", "y", "s", "ward", "wards")
) | frozenset(_OPPOSITE)
# Without a side, the order is often meant from left to right: "the first giraffe", "the end of the row".
_ORDER_WORDS = frozenset(
    ("first", "second", "third", "fourth", "fifth", "last", "start", "beginning", "end", "before", "after")
)
_ORDINAL = re.compile(r"\b(?:1st|2nd|3rd|[4-9]th)\b", re.IGNORECASE)
_CHARACTERS = re.compile(r"[A-Za-z\s.,;:!?'’\"“”()&/-]+")  # noqa: RUF001  no digits ("at 3:00"), no arrows
# English words of referring expressions whose meaning does not change in a mirrored image. Words are missing if they
# depend on the direction ("west", "clockwise", "clock" in "3 on the clock", "driver" in "driver's side"), or concern
# text, which cannot be read in a mirrored image ("letter", "says"). Plurals are recognized by their singular.
ENGLISH_WORDS = word_list("english_words.txt")
_WORD = re.compile(r"[a-z]+(?:n't)?")
# "left" and "right" in the sense of a side usually follow one of these words, or come before a noun.
_BEFORE_SIDE = (
    r"(?<!\bthe )(?<!\bon )(?<!\bto )(?<!\bat )(?<!\bfar )(?<!\btop )(?<!\bupper )(?<!\blower )(?<!\bbottom )"
    r"(?<!\bfront )(?<!\bback )(?<!\bmost )(?<!\bmiddle )(?<!\bcenter )(?<!\bfrom )(?<!\bhis )(?<!\bher )(?<!\btheir )"
)
_NOT_A_SIDE = re.compile(
    r"\bright[- ](?:angle|side[- ]up)|\ball right\b"
    # "right behind it" means directly behind it, and "left on the plate" remaining there.
    rf"|{_BEFORE_SIDE}\b(?:left|right) (?:behind|next|beside|above|below|beneath|under|underneath|before|after|between"
    r"|in|on|at|by|over|around|across|against|along|with|inside|outside|near|to|up|down|off|out|away|alone|open|here"
    r"|there|now|where|into|onto|upon|through|past|toward|towards|within|about|as|for|from|until|this|way|the|a|an"
    r"|his|her|their|its|it)\b|\bright way\b"
    rf"|\b(?:only|what|who|that['’]?s|no|any|some|few|last)\b.*{_BEFORE_SIDE}\bleft\b"  # noqa: RUF001
    r"|\bleft overs?\b|\b(?:more|less|least|with (?:the )?most|(?:least|less|more|most) \w+) left\b"
    r"|\b(?:has|have|had|been|being|is|are|was|were) left(?! of\b)",
    re.IGNORECASE,
)


def swap_sides(sentence: str) -> str:
    """Swap left and right in a sentence, preserving case.

    "The leftmost cup, right of the Left plate" → "The rightmost cup, left of the Right plate".
    """

    def swap(match: re.Match[str]) -> str:
        side = match[0]
        other = _OPPOSITE[side.lower()]
        return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other

    return _SIDES.sub(swap, sentence)


def can_be_flipped(sentence: str) -> bool:
    """Return whether `swap_sides` of the sentence is known to describe the mirrored image correctly.

    The language of a sentence is unknown, and so are its words for left and right ("links", "gauche", "izquierda").
    Therefore every word has to be in a list of English words whose meaning does not depend on the direction; a single
    other word ("west", a name, a misspelling) makes the answer False. So does a digit, "right" in the sense of
    directly ("the cup right behind it"), "left" in the sense of remaining, and an order without a side ("the first
    giraffe").
    """
    sentence = _ORDINAL.sub("second", sentence)  # only whether there is an order matters here
    if not _CHARACTERS.fullmatch(sentence):
        return False
    lower = sentence.lower()
    if ("left" in lower or "right" in lower) and _NOT_A_SIDE.search(lower):  # the search takes most of the time
        return False
    words = _WORD.findall(lower.replace("’", "'").replace("'s", ""))  # noqa: RUF001
    has_side = not SIDE_WORDS.isdisjoint(words)
    known = [word in SIDE_WORDS or _is_english(word) or (has_side and word in _ORDER_WORDS) for word in words]
    return bool(words) and all(known)


def _is_english(word: str) -> bool:
    return word in ENGLISH_WORDS or any(
        word.endswith(ending) and word.removesuffix(ending) in ENGLISH_WORDS for ending in ("s", "es")
    )
