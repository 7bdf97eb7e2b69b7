"""The rules of each kind of expression, on images of a few rectangles."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.data.tools.coco_files import (
    LEFT,
    NAMES,
    RIGHT,
    SPOT,
    annotation,
    describe,
    lines,
    painted,
    sentences,
    square,
    write,
)


def test_all_others_of_a_class_make_a_sentence_ambiguous(tmp_path):
    dog = annotation(1, "dog", (10, 50, 40, 80))
    assert "dog" in sentences(write(tmp_path / "alone", [dog]))[1]
    tiny = annotation(2, "dog", (80, 60, 83, 63))
    assert "dog" not in sentences(write(tmp_path / "tiny", [dog, tiny])).get(1, ())
    longer_name = annotation(2, "hot dog", (100, 50, 140, 80))
    both = sentences(write(tmp_path / "name", [dog, longer_name]))
    assert "dog" not in both[1]
    assert "hot dog" in both[2]
    assert not any(text.endswith("the dog") for text in both[2])  # the hot dog may be meant
    # The place of the dogs in a crowd is unknown.
    crowd = annotation(2, "dog", (100, 50, 140, 80), iscrowd=1)
    person = annotation(3, "person", (50, 50, 80, 80))
    for name, other in (("crowd", crowd), ("empty", annotation(2, "dog", (300, 300, 310, 310)))):
        found = sentences(write(tmp_path / name, [dog, other, person]))
        assert list(found) == [3]
        assert not any("dog" in text for text in found[3])


def test_a_mask_of_many_parts_is_a_crowd(tmp_path):
    parts = [square(10 + 40 * number, 20, 30 + 40 * number, 60) for number in range(3)]
    counts = describe(
        write(
            tmp_path, [annotation(1, "dog", (0, 0, 1, 1), segmentation=parts), annotation(2, "bus", (60, 80, 90, 110))]
        )
    )
    assert (counts["train"].crowds, counts["train"].objects) == (1, 1)


def test_duplicates_of_an_object_are_not_told_apart(tmp_path):
    boxes = [(10, 40, 40, 80), (11, 40, 41, 80), (110, 40, 140, 80)]
    found = sentences(write(tmp_path, [annotation(number, "bus", box) for number, box in enumerate(boxes)]))
    assert list(found) == [2]
    assert "rightmost bus" in found[2]


def test_places_in_a_row(tmp_path):
    row = [annotation(number, "bus", (5 + 40 * number, 40, 30 + 40 * number, 80)) for number in range(4)]
    found = sentences(write(tmp_path / "row", row))
    assert {"second bus from the left", "third bus from the right"} <= found[1]
    assert "leftmost bus" in found[0] or "bus farthest to the left" in found[0]
    assert not any("from the top" in text for texts in found.values() for text in texts)
    # Two objects that overlap, or a much smaller one: not everybody would count in the same way.
    for name, box in (("overlap", (12, 40, 37, 80)), ("small", (60, 50, 66, 56))):
        other = [*row[:1], annotation(1, "bus", box), *row[2:]]
        found = sentences(write(tmp_path / name, other))
        assert not any("from the" in text for texts in found.values() for text in texts)
    plural = [{**item, "category_id": NAMES.index("scissors") + 1} for item in row]
    found = sentences(write(tmp_path / "plural", plural))
    assert found
    assert not any("second" in text for texts in found.values() for text in texts)


@pytest.mark.parametrize(
    ("name", "first", "second", "expected"),
    [
        ("bus", (220, 20, 20), (30, 70, 210), {"red", "blue"}),
        ("bus", (220, 20, 20), (200, 30, 30), set()),  # both are red
        ("bus", (220, 20, 20), (250, 140, 20), set()),  # orange is similar to red
        ("bus", (250, 250, 250), (10, 10, 10), {"white", "black"}),
        ("bus", (30, 70, 210), (70, 95, 150), set()),  # a bluish gray may be blue
        ("bus", (170, 170, 170), (120, 75, 40), set()),  # gray and brown are not used
        ("person", (220, 20, 20), (30, 70, 210), set()),  # it is the color of clothes
    ],
)
def test_colors(tmp_path, name, first, second, expected):
    items = [annotation(1, name, LEFT), annotation(2, name, RIGHT)]
    found = sentences(write(tmp_path, items, {1: painted((LEFT, first), (RIGHT, second), SPOT)}))
    named = {text.split()[0] for texts in found.values() for text in texts if text.endswith(name)}
    assert named - {"left", "right", "leftmost", "rightmost"} == expected


def test_a_striped_object_or_a_gray_photo_has_no_color(tmp_path):
    items = [annotation(1, "bus", LEFT)]
    half = (LEFT[0], LEFT[1], 30, LEFT[3])
    striped = painted((LEFT, (220, 20, 20)), (half, (30, 70, 210)))
    assert not any(
        "red" in text or "blue" in text for text in sentences(write(tmp_path / "a", items, {1: striped}))[1]
    )
    gray = painted((LEFT, (250, 250, 250)), gray=True)
    assert "white bus" not in sentences(write(tmp_path / "b", items, {1: gray}))[1]
    colorful = painted((LEFT, (250, 250, 250)), SPOT)
    assert "white bus" in sentences(write(tmp_path / "c", items, {1: colorful}))[1]


def test_several_sentences_are_of_different_kinds(tmp_path):
    items = [annotation(1, "bus", LEFT), annotation(2, "dog", RIGHT)]
    pixels = {1: painted((LEFT, (220, 20, 20)))}
    file = write(tmp_path, items, pixels)
    for limit in (1, 2, 4):
        describe(file, max_expressions=limit)
        kinds = lines(tmp_path / "out")[0]["kinds"]
        assert len(kinds) == len(set(kinds)) == limit
    assert Counter(lines(tmp_path / "out")[0]["kinds"]).keys() == {"class", "color", "position", "relation"}


def test_class_names_that_hold_words_of_the_rules(tmp_path):
    """ "The left shoe" must not refer to the shoe on the left if another object has the class "left shoe"."""
    names = [{"id": 1, "name": "shoe"}, {"id": 2, "name": "left shoe"}]
    items = [
        {**annotation(1, "dog", LEFT), "category_id": 1},
        {**annotation(2, "dog", RIGHT), "category_id": 2},
    ]
    file = write(tmp_path, items, categories=names)
    for seed in range(5):
        found = sentences(file, seed=seed)
        assert "left shoe" not in found.get(1, ())
        everything = [text for texts in found.values() for text in texts]
        assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("dog", {"name": "dogs"}),
        ("tv", {"name": "tv-stand"}),
        ("vehicle", {"name": "car", "supercategory": "Vehicle"}),
    ],
)
def test_a_class_name_that_may_mean_another_class(tmp_path, first, second):
    items = [annotation(1, "dog", LEFT), {**annotation(2, "dog", RIGHT), "category_id": 2}]
    file = write(tmp_path, items, categories=[{"id": 1, "name": first}, {"id": 2, **second}])
    found = sentences(file)
    assert first not in found[1]
    assert any("left" in text for text in found[1])
    assert not any(text.endswith(f"the {first}") for text in found[2])


def test_class_names_are_cleaned(tmp_path):
    file = write(tmp_path, [annotation(1, "dog", LEFT)], categories=[{"id": 1, "name": "salt &amp;_pepper"}])
    assert "salt & pepper" in sentences(file)[1]
