"""Shapes of labeling tools: groups, numbers and masks of boxes."""

from functools import partial

import numpy as np
import pytest

from detris_peft.data import decode_mask
from detris_peft.data.errors import BadRowError
from detris_peft.data.fields import read_mask
from detris_peft.data.readers.labels.objects import object_id
from detris_peft.data.readers.labels.shapes import Shape, paste_mask, read_number, unite_shapes


def square(x, **changes):
    mask = partial(read_mask, [[x, 0, x + 2, 0, x + 2, 2, x, 2]], where="a")
    return Shape(**{"where": f"square {x}", "mask": mask, "label": "a"} | changes)


def test_shapes_of_a_group_are_one_object():
    error = BadRowError("damaged")
    shapes = [
        square(0, group=1, sentences=["one", "two"], text_field="caption"),
        None,
        square(4),
        error,
        square(8, group=1, sentences=["two", "three"]),
        square(9, group=2, label="b"),
    ]
    first, second, third, fourth = unite_shapes(shapes, "a.png")
    assert third is error
    assert [one.where for one in (first, second, fourth)] == ["square 0", "square 4", "square 9"]
    assert [one.label for one in (first, second, fourth)] == ["a", "a", "b"]
    assert [one.ann_id for one in (first, second, fourth)] == [object_id("a.png", index) for index in (0, 2, 5)]
    assert (first.sentences, first.text_field) == (["one", "two", "three"], "caption")
    assert second.sentences is None
    assert np.flatnonzero(decode_mask(first.mask(4, 12))[0]).tolist() == [0, 1, 8, 9]
    assert unite_shapes(shapes[:1], "a.png", first=7)[0].ann_id == object_id("a.png", 7)


def test_a_part_whose_sentence_is_not_text_makes_the_object_invalid():
    (united,) = unite_shapes([square(0, group=1, sentences=["one"]), square(4, group=1, sentences=5)], "a.png")
    assert united.sentences == 5


def test_a_part_without_a_mask_makes_the_object_invalid():
    outside = square(90, group=1)
    (united,) = unite_shapes([square(0, group=1), outside], "a.png")
    with pytest.raises(BadRowError, match="entirely outside"):
        united.mask(4, 12)


@pytest.mark.parametrize("value", [None, True, "x", "", "nan", float("inf"), [1], 10**400])
def test_numbers_are_finite(value):
    assert read_number({"x": "1.5", "y": 2}, "x", "a") == 1.5
    assert read_number({"x": "1.5", "y": 2}, "y", "a") == 2
    with pytest.raises(BadRowError, match="a: expected a number as 'x', got"):
        read_number({"x": value}, "x", "a")


@pytest.mark.parametrize(
    ("left", "top", "columns", "rows"),
    [(1, 1, [1, 2], [1, 2]), (-1, 0, [0], [0, 1]), (4, 2, [4], [2]), (0, -1, [0, 1], [0])],
)
def test_a_box_may_exceed_the_image(left, top, columns, rows):
    expected = np.zeros((3, 5), np.uint8)
    expected[np.ix_(rows, columns)] = 1
    mask = paste_mask(np.ones((2, 2), bool), left, top, "a", 3, 5)
    assert np.array_equal(decode_mask(mask), expected)


@pytest.mark.parametrize(("left", "top"), [(5, 0), (0, 3), (-2, 0), (0, -2), (10**30, 0), (0, -(10**30))])
def test_a_box_outside_the_image_is_an_error(left, top):
    with pytest.raises(BadRowError, match="within the image of 5x3 pixels, got all of it outside") as caught:
        paste_mask(np.ones((2, 2), bool), left, top, "a", 3, 5)
    assert caught.value.kind == "mask_out_of_frame"
    with pytest.raises(BadRowError, match="got none") as caught:
        paste_mask(np.zeros((2, 2), bool), 0, 0, "a", 3, 5)
    assert caught.value.kind == "mask_empty"
