"""Changes of single fields keep the rest of the JSON text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detris_peft.data.tools.review.json_text import array_spans, object_spans, remove_field, set_field

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", 'c"', "é", "mask"]), VALUES, max_size=5)
INDENTS = st.sampled_from([None, 0, 2])


@settings(max_examples=50, deadline=None)
@given(OBJECTS, st.sampled_from(["a", "b", 'c"', "new"]), VALUES, INDENTS, st.booleans())
def test_setting_and_removing_a_field_changes_only_that_field(content, name, value, indent, ascii_only):
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    changed = set_field(text, name, value)
    assert json.loads(changed) == {**content, name: value}
    assert [*json.loads(changed)] == [*{**content, name: value}]  # the order is kept
    removed = remove_field(changed, name)
    assert json.loads(removed) == {key: content[key] for key in content if key != name}
    if name not in content:
        assert removed == text
    assert [span.name for span in object_spans(text)] == [*content]


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, max_size=4), INDENTS)
def test_the_items_of_an_array_are_found(items, indent):
    text = json.dumps(items, indent=indent)
    assert [json.loads(text[start:end]) for start, end in array_spans(text)] == items


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ('{"x": 1.50 ,"sentence" :"a","y":[1,  2]}', '{"x": 1.50 ,"sentences": ["a", "ü"],"y":[1,  2]}'),
        (' {"sentence": "a"}\t', ' {"sentences": ["a", "ü"]}\t'),
        ('{"\\u0073entence": "a"}', '{"sentences": ["a", "ü"]}'),
    ],
)
def test_a_field_takes_the_place_of_another_one(text, changed):
    assert set_field(text, "sentences", ["a", "ü"], replaced="sentence") == changed


def test_the_first_and_the_only_field_are_removed():
    assert remove_field('{ "a": 1, "b": 2}', "a") == '{ "b": 2}'
    assert remove_field('{"a": 1}', "a") == "{}"
    assert remove_field('{"a": 1}', "b") == '{"a": 1}'
    assert set_field("{ }", "a", 1) == '{"a": 1 }'
