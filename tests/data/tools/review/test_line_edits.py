"""Edits of one object keep its other fields, and its form."""

import json

import pytest

from detris_peft.data.errors import BadRowError
from detris_peft.data.tools.review import edit_line, sentence_items

START = '{"file_name": "a.png",  "note":1.50, '


def edited(text, sentences, bad_mask=False):
    return edit_line(text, sentences, bad_mask, "m.jsonl line 1").text


@pytest.mark.parametrize(
    ("before", "sentences", "after"),
    [
        # one sentence, changed, with a second one, and replaced by another one
        ('"sentence": "a"', [(0, "b")], '"sentence": "b"'),
        ('"sentence": "a"', [(0, None), (None, "b")], '"sentences": ["a", "b"]'),
        ('"sentence": "a"', [(None, "b")], '"sentence": "b"'),
        ('"sentence": ["a"]', [(0, None), (None, "b")], '"sentence": ["a", "b"]'),
        ('"sentences": null, "sentence": "a"', [(0, None), (None, "b")], '"sentences": ["a", "b"]'),
        ('"sentences": "a"', [(0, None), (None, "b")], '"sentences": ["a", "b"]'),
        # a list
        ('"sentences": ["a","b"]', [(1, None)], '"sentences": ["b"]'),
        ('"sentences": ["a","b"]', [(1, None), (0, "c")], '"sentences": ["b", "c"]'),
        ('"sentences": ["a"], "sentence": 5', [(0, "ü")], '"sentences": ["ü"], "sentence": 5'),
        # objects keep their other fields
        ('"sentences": [{"sent": "a", "id": 7}]', [(0, "b")], '"sentences": [{"sent": "b", "id": 7}]'),
        ('"sentences": [{"raw": "a"}]', [(0, "b"), (None, "c")], '"sentences": [{"raw": "b"}, {"sent": "c"}]'),
        ('"sentence": {"sent": "a"}', [(0, "b")], '"sentence": {"sent": "b"}'),
        # none yet
        ('"x": 1', [(None, "a")], '"x": 1, "sentences": ["a"]'),
        ('"sentences": []', [(None, "a")], '"sentences": ["a"]'),
        # the kinds that `detris data describe` wrote
        (
            '"sentences": ["a","b"], "kinds": ["class", "color"]',
            [(1, None), (None, "c")],
            '"sentences": ["b", "c"], "kinds": ["color", "written"]',
        ),
        (
            '"sentences": ["a","b"], "kinds": ["class", "color"]',
            [(0, "c"), (1, None)],
            '"sentences": ["c", "b"], "kinds": ["written", "color"]',
        ),
        ('"sentences": ["a"], "kinds": "x"', [(0, "b")], '"sentences": ["b"], "kinds": "x"'),
    ],
)
def test_sentences(before, sentences, after):
    assert edited(f"{START}{before} }}", sentences) == f"{START}{after} }}"


@pytest.mark.parametrize("sentences", [[(0, None), (1, None)], [(0, "a"), (1, " b\n")]])
def test_an_edit_that_changes_nothing_keeps_the_text(sentences):
    text = START + '"sentences": ["a",\t"b"], "kinds": ["class", "color"]}'
    assert edited(text, sentences) == text


def test_line_breaks_and_outer_spaces_are_removed_from_written_sentences():
    assert json.loads(edited('{"sentences": ["a\\nb", "c"]}', [(0, None), (1, " d\n e ")]))["sentences"] == [
        "a\nb",
        "d e",
    ]


@pytest.mark.parametrize("blank", ["", "  ", "\u200b", "\u00ad"])
def test_blank_sentences_are_not_saved(blank):
    edit = edit_line('{"sentences": ["a", "b"]}', [(0, blank), (None, blank), (1, "c")], False, "m.jsonl line 1")
    assert json.loads(edit.text)["sentences"] == ["a", "c"]
    assert edit.indices == [0, None, 1]
    assert [*edit.messages] == [0, 1]
    assert edit.messages[0].startswith("sentence 1 is not saved: expected sentences of non-blank text")


def test_half_a_surrogate_pair_is_not_saved():
    edit = edit_line('{"sentences": ["a"]}', [(0, "b\ud800")], False, "m.jsonl line 1")
    assert edit.text == '{"sentences": ["a"]}'
    assert "half of a surrogate pair" in edit.messages[0]


@pytest.mark.parametrize("sentences", [[], [(None, " ")]])
def test_the_last_sentence_stays(sentences):
    with pytest.raises(
        ValueError, match=r"m\.jsonl line 1: expected at least one sentence, got none; write another one"
    ):
        edited('{"sentence": "a"}', sentences)


@pytest.mark.parametrize("indices", [[1], [-1], [0, 0], ["0"], [0.0], [True]])
def test_wrong_indices_are_refused(indices):
    with pytest.raises(ValueError, match="sentences: expected different indices from 0 to 0"):
        edited('{"sentence": "a"}', [(index, "b") for index in indices])


def test_a_flag_is_one_field_that_is_removed_again():
    text = START + '"sentence": "a"}'
    flagged = edited(text, [(0, None)], bad_mask=True)
    assert flagged == START + '"sentence": "a", "bad_mask": true}'
    assert edited(flagged, [(0, None)], bad_mask=True) == flagged
    assert edited(flagged, [(0, None)], bad_mask=False) == text
    unset = START + '"sentence": "a", "bad_mask": false}'
    assert edited(unset, [(0, None)]) == unset
    assert edited(unset, [(0, None)], bad_mask=True) == flagged


@pytest.mark.parametrize("value", ['[5, "a"]', "5", '{"text": "a"}', '[["a"]]'])
def test_sentences_that_are_no_texts_are_an_error_but_the_mask_can_be_flagged(value):
    text = f'{{"sentences": {value}}}'
    with pytest.raises(BadRowError, match="expected a list of texts as 'sentences'"):
        sentence_items(json.loads(text), "m.jsonl line 1")
    with pytest.raises(BadRowError, match="expected a list of texts"):
        edited(text, [(None, "a")])
    assert edited(text, [], bad_mask=True) == f'{{"sentences": {value}, "bad_mask": true}}'
