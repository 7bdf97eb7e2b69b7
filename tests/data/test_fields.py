"""Any value of a field is either parsed or rejected with a BadRowError: no other error, no mask without foreground."""

import io

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detris_peft.data.errors import BAD_KINDS, BadRowError, MissingImageError
from detris_peft.data.fields import read_box, read_id, read_mask, read_sentences, sentence_ids, text_id, upright_size
from detris_peft.data.masks import decode_mask

HEIGHT, WIDTH = 6, 8
NUMBERS = st.integers(-20, 20) | st.floats(-20, 20) | st.sampled_from([10**30, float("nan"), float("inf"), True])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["size", "counts", "path", "bytes", "sent", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES | st.lists(NUMBERS, min_size=4, max_size=8), st.booleans())
def test_any_value_is_a_mask_with_foreground_or_a_bad_row(value, fractions):
    for read in (read_mask, read_box):
        mask, refusal = None, None
        try:
            mask = read(value, HEIGHT, WIDTH, "here: 'mask'", fractions=fractions)
        except BadRowError as error:
            refusal = error
        if mask is None:
            assert refusal.kind in BAD_KINDS
            assert str(refusal).startswith("here: 'mask'")
            assert len(str(refusal).splitlines()) == 1
        else:
            assert decode_mask(mask).shape == (HEIGHT, WIDTH)
            assert decode_mask(mask).any()


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_is_sentences_or_an_id_or_a_bad_row(value):
    try:
        sentences = read_sentences(value, "here")
    except BadRowError:
        pass
    else:
        assert sentences
        assert all(isinstance(sentence, str) and sentence.strip() for sentence in sentences)
    try:
        number = read_id(value, -1, "here")
    except BadRowError:
        pass
    else:
        assert all(-(2**63) <= one < 2**63 for one in (number, *sentence_ids(number, 3)))


def test_numeric_ids_are_kept_and_text_ids_are_hashed():
    assert [read_id(value, 4, "") for value in (7, "007", None)] == [7, 7, 4]
    assert read_id("a7", 4, "") == text_id("a7") != text_id("a8")
    assert text_id("a7") == 161058116285104  # the same on every machine


def header(size=(WIDTH, HEIGHT), kind="JPEG", turn=None):
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, exif=exif)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [None, 1, 3, 6, 8])
def test_upright_size_equals_the_size_that_datasets_decodes(kind, turn):
    decoded = datasets.Image().decode_example(header(kind=kind, turn=turn))
    assert upright_size(header(kind=kind, turn=turn), "") == (decoded.height, decoded.width)


def test_upright_size_reads_the_header_alone():
    complete = header((2000, 1500))
    truncated = {"bytes": complete["bytes"][:700], "path": None}
    assert upright_size(truncated, "") == (1500, 2000)
    with pytest.raises(MissingImageError, match=r"here: none\.jpg is missing"):
        upright_size({"path": "none.jpg", "bytes": None}, "here")
    for broken in ({"bytes": b"x", "path": "x.jpg"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "."}):
        with pytest.raises(BadRowError) as caught:
            upright_size(broken, "here")
        assert caught.value.kind == "image_damaged"


def test_boxes_become_rectangular_masks_within_the_image():
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:4, 2:6] = 1
    for box, corners in (([2, 1, 4, 3], False), ([2, 1, 6, 4], True)):
        np.testing.assert_array_equal(decode_mask(read_box(box, HEIGHT, WIDTH, "", corners=corners)), expected)
    assert decode_mask(read_box([6, 4, 3, 3], HEIGHT, WIDTH, "")).sum() == 4  # one pixel outside is tolerated
    for box, kind in (
        ([6, 4, 9, 9], "mask_malformed"),
        ([20, 1, 3, 3], "mask_out_of_frame"),
        ([1, 1, 0, 3], "mask_empty"),
    ):
        with pytest.raises(BadRowError) as caught:
            read_box(box, HEIGHT, WIDTH, "")
        assert caught.value.kind == kind
