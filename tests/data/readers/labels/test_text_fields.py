"""Names of the attributes that hold sentences, and the sentences in them."""

import pytest

from detris_peft.data.readers.labels.text_fields import TEXT_FIELDS, find_text, is_text_field, split_sentences


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"color": "red", "Description": " the left rose "}, ("Description", ["the left rose"])),
        ({"description": "long", "Referring Expression": "short"}, ("Referring Expression", ["short"])),
        ({"referring-expression": "a\n\r\n b \n"}, ("referring-expression", ["a", "b"])),
        ({"caption": " ", "text": "the bud; it is small"}, ("text", ["the bud; it is small"])),
        ({"sentences": ["a", "", None, "b"]}, ("sentences", ["a", "b"])),
        ({"captions": [], "caption": None}, None),
        ({"texture": "a", 5: "b"}, None),
        ({}, None),
        # RefCOCO has such expressions: the number on a shirt.
        ({"text": "12"}, ("text", ["12"])),
        # What is not text is returned, so that `read_sentences` raises its error.
        ({"text": 12}, ("text", 12)),
        ({"text": "True"}, ("text", True)),
        ({"caption": "false", "text": "a"}, ("caption", False)),
        ({"text": {"a": 1}}, ("text", {"a": 1})),
    ],
)
def test_the_first_filled_field_is_used(attributes, found):
    assert find_text(attributes) == found


def test_lines_are_sentences():
    assert split_sentences("one\ntwo, three; four.\n\n") == ["one", "two, three; four."]
    assert split_sentences(" \n") is split_sentences([" "]) is split_sentences(None) is None


def test_names_are_compared_without_case():
    assert all(map(is_text_field, (*TEXT_FIELDS, "Text", "REFERRING EXPRESSION")))
    assert not any(map(is_text_field, ("texts of", "class", 3, None)))
